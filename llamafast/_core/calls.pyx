"""How many tokens a model that drafts is asked for in a step: as many as pay for its calls too, as far as can be told
before any is drafted. And how much of the texts that its memory lacks a step has it compute.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from .acceptance cimport acceptance_chance, acceptance_t, acceptance_trust
from .cost cimport times_of, times_t, times_with
from .plan cimport plan_pays
from .proposer cimport RESTS, Proposer, proposer_fill, proposer_seconds
from .sequence cimport sequence_t

# What a draft model has cost may be so much more than it has saved before its memory is filled no further: so many
# steps of one row, and a share of the time of all steps in which it lacked something; and the most such steps that what
# it has saved counts later.
cdef double CREDIT = 256
cdef double SHARE = 0.02
cdef double MOST_SAVED = 1024


cdef void calls_init(
    calls_t *self, const acceptance_t *acceptance, const times_t *times, int32_t source, bint in_passes, int32_t useful,
    int32_t room
) noexcept nogil:
    self.acceptance = acceptance
    self.times = times
    self.source = source
    self.in_passes = in_passes
    self.useful = useful
    self.room = room
    self.n = self.n_fed = 0
    self.sooner = 0


cdef void calls_add(calls_t *self, sequence_t *s, int32_t most, int32_t lacks) noexcept nogil:
    """Somebody may have up to ``most`` tokens drafted, one at least."""
    self.asking[self.n] = s
    self.trust[self.n] = acceptance_trust(&s.draft, self.source)
    self.most[self.n] = most
    self.lacks[self.n] = lacks
    self.n_fed += lacks - 1
    self.n += 1


cdef int32_t calls_plan(calls_t *self, Proposer proposer) noexcept nogil:
    """Fill ``lengths``: the most tokens that anybody is asked for, 0 where none pays. Where rows cost the same
    whosever they are, those of less trust are asked for fewer."""
    cdef double chance[LLAMA_MAX_SEQ]
    cdef double expected = 0, expected_best = 0, seconds, value, best, without, row
    cdef int32_t i, k, n_calling, n_rows = 0, n_best = 0, rows_best = 0, most = 0
    if self.n == 0:
        return 0
    memset(self.lengths, 0, <size_t> self.n * sizeof(int32_t))
    for i in range(self.n):
        chance[i] = self.trust[i]
        most = max(most, self.most[i]) if not self.in_passes or i == 0 else min(most, self.most[i])
    without = best = self.useful / times_with(self.times, self.useful, 0)
    seconds = self.n_fed * proposer.per_fed
    for k in range(1, most + 1):
        n_calling = 0
        for i in range(self.n):
            if k <= self.most[i]:
                chance[i] *= acceptance_chance(self.acceptance, self.source, k - 1)
                expected += chance[i]
                n_calling += 1
        n_rows += n_calling
        if n_rows > self.room:
            break
        seconds += proposer_seconds(proposer, n_calling, 1, 0)
        value = (self.useful + expected) / (seconds + step_seconds(self, k, n_rows))
        if value > best:
            best = value
            n_best = k
            rows_best = n_rows
            expected_best = expected
    # nobody is asked for what a step would not decode, beside a long prompt for one
    if n_best == 0 or not plan_pays(
        (self.useful + expected_best) / step_seconds(self, n_best, rows_best) / without
    ):
        return 0
    self.sooner = 1 / without - 1 / best
    row = proposer.per_row + (step_seconds(self, n_best, rows_best) - step_seconds(self, 0, 0)) / rows_best
    for i in range(self.n):
        chance[i] = self.trust[i]
        for k in range(1, min(n_best, self.most[i]) + 1):
            chance[i] *= acceptance_chance(self.acceptance, self.source, k - 1)
            if k > 1 and not self.in_passes and chance[i] < best * row:
                break
            self.lengths[i] = k
    return n_best


cdef double step_seconds(const calls_t *self, int32_t k, int32_t n_rows) noexcept nogil:
    """What the step takes in which everybody has ``k`` tokens drafted, ``n_rows`` in all."""
    cdef double seconds
    if not self.in_passes or k == 0:
        return times_with(self.times, self.useful, n_rows)
    seconds = times_of(self.times, self.n * (1 + k))
    if self.useful > self.n:
        seconds += times_of(self.times, self.useful - self.n)
    return seconds


cdef double calls_fill(calls_t *self, Proposer proposer, double step, double share) noexcept nogil:
    """Compute a slice of what the memory lacks of those who would have drafts once it was there, of the first ones
    first: the seconds that it took. It takes this ``share`` of a ``step``'s seconds, or as long as their drafts would,
    up to the step's own; and nothing is computed for those whose answers may be too short to make up for it."""
    cdef int32_t i, n_best, n = 0, n_rows, n_fed = self.n_fed
    cdef double seconds, taken, one = times_of(self.times, 1)
    cdef int64_t left, room = proposer.n_free
    proposer.stepped += step
    proposer.spent = max(proposer.spent, -MOST_SAVED * one)
    if proposer.spent > CREDIT * one + SHARE * proposer.stepped:
        return 0
    # they will be near by then
    self.n_fed = 0
    n_best = calls_plan(self, proposer)
    self.n_fed = n_fed
    if n_best == 0 and proposer.rested < RESTS:
        # where all texts are long nobody is near enough for it to be asked
        proposer.rested += 1
        return 0
    for i in range(self.n):
        left = self.asking[i].tokens.n_max - self.asking[i].tokens.n_certain
        # half a text is of no use to anybody
        if self.lacks[i] + self.most[i] <= room and (
            n_best == 0 or left * self.sooner > self.lacks[i] * proposer.per_fed
        ):
            room -= self.lacks[i] + self.most[i]
            self.asking[n] = self.asking[i]
            n += 1
    seconds = max(share * step, min(proposer_seconds(proposer, self.n, n_best, 0), step))
    n_rows = <int32_t> min((seconds - proposer.fixed) / max(proposer.per_fed, 1e-9), 1e6)
    if n == 0 or n_rows < 1:
        return 0
    proposer_fill(proposer, self.asking, n, n_rows, &taken)
    proposer.spent += taken
    return taken
