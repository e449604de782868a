"""Who drafts for which sequence, and how many of the drafted tokens a step decodes.

For each sequence the source whose tokens are the likelier to come proposes; of all proposals those rows are taken with
which a step gives most useful rows per second: rows that would be computed anyway, and drafted ones by their chance to
be what comes. What a step of so many rows takes is measured, when the model is loaded and from then on. As adaptive
verification in vLLM, and TurboSpec before it (Liu et al., arXiv 2406.14066), but for the ledger: each sequence has one,
and where what was drafted for it has cost more than it has saved, nothing is drafted, whatever the chances are taken
for.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from .acceptance cimport (
    acceptance_chance, acceptance_init, acceptance_learn, acceptance_prefer, acceptance_rate, acceptance_trust,
)
from .answers cimport answers_clear, answers_free, answers_init, answers_keep, answers_propose, answers_size
from .chains cimport chains_free
from .context cimport Batch, Context, batch_add, context_decode
from .cost cimport MAX_TIMED, times_fill, times_of, times_with
from .draft cimport MAX_DRAFT, draft_t, proposal_t
from .headers.clock cimport now, thread_now
from .headers.llama cimport LLAMA_MAX_SEQ, llama_synchronize
from .leaks cimport DRAFTER, born, died
from .live cimport live_stop, live_t
from .lookup cimport lookup_observe, lookup_own, lookup_prediction
from .nextn cimport Head, head_draft, head_knows, head_seconds
from .plan cimport plan_passes, plan_rows
from .sequence cimport PHASE_DECODING, PHASE_ENDED, sequence_draft, sequence_t, sequence_undraft

cdef enum:
    INDEXED_A_STEP = 4096       # tokens: some 50 microseconds

# Rows that a sequence's drafts may cost before they have saved any, the share of all its rows that they may, and the
# most that what they have saved counts later.
cdef double CREDIT = 0.5
cdef double SHARE = 0.005
cdef double MOST_SAVED = 20
# Until they have saved so much they make a step but little longer.
cdef double PROVEN = 2
# What promises to be so much faster at least is done: the best of many guesses is a guess that was too good.
cdef double LEAST_GAIN = 1.05
# A head that does not pay is asked all the same once in so many steps.
cdef int32_t RESTS = 256
# The rows of steps that are timed, the most useful first, and how often the time is looked for that nobody held up.
cdef tuple TIMED = (1, 4, 2, 8, 3, 16, 5, 6, 12, 32, 24, 48, 64)
cdef int ROUNDS = 4


cdef class Drafter:
    """Drafts for the sequences of one Context, up to ``most`` tokens each, none where more than ``most_sequences``
    decode. With ``looks_up`` tokens are looked up for all of them, else only for those with a prediction;
    a ``head`` of the same context drafts where that promises more.
    ``answers_bytes`` bound what is kept of finished answers. Engine thread only, but for ``counts``.
    """

    def __cinit__(
        self, Context context not None, *, int32_t most, int32_t most_sequences, bint looks_up, int64_t answers_bytes,
        Head head=None
    ):
        if not 0 < most <= MAX_DRAFT:
            raise ValueError(f"drafts of {most} tokens: expected 1 to {MAX_DRAFT}")
        self.context = context
        self.most = min(most, context.n_undo)
        self.most_sequences = most_sequences
        self.looks_up = looks_up
        self.head = head
        self.recurrent = context.n_cuttable == 0
        self.in_passes = not context.unified or self.recurrent
        acceptance_init(&self.acceptance)
        if answers_init(&self.answers, answers_bytes if looks_up else 0) < 0:
            raise MemoryError
        born(DRAFTER)

    def __dealloc__(self):
        if self.most_sequences:
            died(DRAFTER)
        answers_free(&self.answers)

    def time_steps(self, int32_t token, double seconds):
        """Measure what steps of different numbers of rows take, for about so long; before it nobody drafts. Nothing may
        run. The seconds by the number of rows; RuntimeError where llama_decode fails."""
        cdef int32_t i, rows, most_rows = min(self.context.n_ubatch, min(self.context.n_ctx_seq, MAX_TIMED))
        cdef int32_t[16] sizes
        cdef double[16] taken
        cdef double until = now() + seconds
        cdef double first, change = INFINITY
        cdef dict best = {}
        cdef Batch batch = Batch(most_rows)
        for _ in range(ROUNDS):
            for rows in TIMED:
                guess = 2 * best.get(rows, 2 * max(best.values(), default=0))
                if rows > most_rows or (len(best) > 1 and now() + guess > until):
                    continue
                # the first one of a size has a graph to make
                first = self.time_step(batch, token, rows)
                best[rows] = min(best.get(rows, INFINITY), self.time_step(batch, token, rows))
                change = min(change, max(0.0, first - best[rows]))
        for i, rows in enumerate(sorted(best)):
            sizes[i] = rows
            taken[i] = best[rows]
        times_fill(&self.times, sizes, taken, <int32_t> len(best), change if change < INFINITY else 0)
        return best

    cdef double time_step(self, Batch batch, int32_t token, int32_t rows) except -1:
        cdef int32_t i, code
        cdef double start
        batch.clear()
        for i in range(rows):
            batch_add(&batch.batch, token, i, 0, True)
        start = drafter_clock(self)
        with nogil:
            code = context_decode(self.context, &batch.batch)
            llama_synchronize(self.context.ctx)
        start = drafter_clock(self) - start
        self.context.clear()
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        return start

    def forget_answers(self):
        """Nobody is told any more what was answered before."""
        answers_clear(&self.answers)

    def counts(self):
        """What was drafted since the start. Any thread; never waits for a step."""
        cdef draft_counters_t *count = &self.counters
        return {
            "draft_proposals": count.proposals, "draft_tokens_proposed": count.proposed,
            "draft_batches_verified": count.verified, "draft_tokens_verified": count.drafted,
            "draft_tokens_accepted": count.accepted, "draft_refused": count.refused, "draft_dropped": count.dropped,
            "draft_calls": count.calls, "draft_observed": count.observed, "draft_most": self.most,
            "draft_generate_seconds": count.propose_seconds, "draft_process_seconds": count.observe_seconds,
            "draft_answers_bytes": answers_size(&self.answers),
            **({} if self.head is None else {
                "head_calls": self.head.calls, "head_rows": self.head.rows_fed, "head_failures": self.head.failures}),
            **{f"draft_{name}_verified": count.drafted_by[i] for i, name in enumerate(SOURCE_NAMES)},
            **{f"draft_{name}_accepted": count.accepted_by[i] for i, name in enumerate(SOURCE_NAMES)},
            **{f"draft_length_{i}": count.lengths[i] for i in range(MAX_DRAFT + 1)},
        }


cdef double drafter_clock(Drafter self) noexcept nogil:
    """What steps are timed by. Where CPUs compute, this thread does as much of it as any other, and what others have of
    its CPU is no part of what rows cost."""
    return thread_now() if self.context.model.on_cpu else now()


SOURCE_NAMES = ("own", "prediction", "answers", "head")


cdef int32_t drafter_fill(
    Drafter self, live_t *live, int32_t turn, int32_t n_decode, int32_t n_prompt, int32_t room
) noexcept nogil:
    """Draft for those who decode, of the group that has the ``turn`` (below 0: of any), up to ``room`` rows, in a step
    of ``n_decode`` rows besides and about ``n_prompt`` of prompts; how many rows that are."""
    cdef sequence_t *drafting[LLAMA_MAX_SEQ]
    cdef int32_t taken[LLAMA_MAX_SEQ]
    cdef sequence_t *s
    cdef int32_t i, n_drafted = 0, n = 0, n_decoding = 0, useful = n_decode + n_prompt
    cdef double start = now()
    self.to_index = INDEXED_A_STEP
    for i in range(live.n):
        n_decoding += live.states[i].phase == PHASE_DECODING
        live.states[i].draft.proposal.n = 0
    if n_decoding > self.most_sequences or (self.times.seconds[1] == 0 and self.propose == NULL):
        return 0
    if self.recurrent and (n_prompt or n_decode != n_decoding):
        # passes behind the one that has drafted rows would move states that are to be taken back
        return 0
    for i in range(live.n):
        s = live.states[i]
        if (turn < 0 or s.group == turn) and may_draft(self, s):
            propose(self, live, s)
            drafting[n] = s
            n += 1
    if self.head is not None and self.propose == NULL and n:
        ask_head(self, live, drafting, n, useful, room)
    n = keep_proposals(self, drafting, n)
    if n:
        self.counters.calls += 1
        choose(self, drafting, taken, n, useful, min(room, <int32_t> MAX_TIMED))
        for i in range(n):
            # without memory nothing is drafted
            if taken[i] and sequence_draft(drafting[i], drafting[i].draft.proposal.tokens, taken[i]) == 0:
                n_drafted += taken[i]
    if n_drafted and self.times.seconds[1] > 0:
        self.row_cost = (times_with(&self.times, useful, n_drafted) / times_with(&self.times, useful, 0) - 1) * (
            useful / <double> n_drafted)
    self.counters.propose_seconds += now() - start
    return n_drafted


cdef int32_t keep_proposals(Drafter self, sequence_t **drafting, int32_t n) noexcept nogil:
    """Those that have one, and whose ledger allows it."""
    cdef int32_t i, n_kept = 0
    cdef draft_t *draft
    for i in range(n):
        draft = &drafting[i].draft
        if draft.proposal.n == 0:
            continue
        self.counters.proposals += 1
        self.counters.proposed += draft.proposal.n
        if self.propose == NULL and draft.balance + CREDIT < -SHARE * draft.rows:
            self.counters.refused += 1
            continue
        drafting[n_kept] = drafting[i]
        n_kept += 1
    return n_kept


cdef void ask_head(
    Drafter self, const live_t *live, sequence_t **drafting, int32_t n, int32_t useful, int32_t room
) noexcept nogil:
    """Let the head draft for those for whom it promises more than they have, as many tokens as pay for its calls."""
    cdef sequence_t *asking[LLAMA_MAX_SEQ]
    cdef double chance[LLAMA_MAX_SEQ]
    cdef double best, value, expected = 0, seconds
    cdef int32_t i, k, own, most = self.most, n_asking = 0, n_best = 0
    cdef draft_t *draft
    self.head_rows = 0
    for i in range(n):
        draft = &drafting[i].draft
        if drafting[i].tokens.n_spans or not head_knows(self.head, drafting[i]):
            continue
        if draft.balance + CREDIT < -SHARE * draft.rows or draft.proposal.n and draft.survival[0] > acceptance_chance(
            &self.acceptance, SOURCE_HEAD, 0
        ):
            continue
        own = most_of(self, live, drafting[i])
        if own <= 0:
            continue
        most = min(most, own)
        asking[n_asking] = drafting[i]
        chance[n_asking] = acceptance_trust(draft, SOURCE_HEAD)
        n_asking += 1
    if n_asking == 0:
        return
    best = useful / times_with(&self.times, useful, 0)
    for k in range(1, min(most, room // n_asking) + 1):
        for i in range(n_asking):
            chance[i] *= acceptance_chance(&self.acceptance, SOURCE_HEAD, k - 1)
            expected += chance[i]
        if self.in_passes:
            seconds = times_of(&self.times, n_asking * (1 + k))
            if useful > n_asking:
                seconds += times_of(&self.times, useful - n_asking)
        else:
            seconds = times_with(&self.times, useful, n_asking * k)
        value = (useful + expected) / (seconds + head_seconds(self.head, n_asking, k))
        if value > best:
            best = value
            n_best = k
    self.rested += 1
    if n_best == 0 and self.rested < RESTS:
        return
    self.rested = 0
    n_best = max(n_best, 1)
    if head_draft(self.head, asking, n_asking, n_best) != 0:
        return
    self.head_rows = head_seconds(self.head, n_asking, n_best) / n_asking / (
        times_with(&self.times, useful, 0) / useful)
    for i in range(n_asking):
        draft = &asking[i].draft
        draft.proposal.n_matched = 0
        draft.proposal.first = 1
        acceptance_rate(&self.acceptance, draft, SOURCE_HEAD, False)
        draft.balance -= self.head_rows


cdef bint may_draft(Drafter self, const sequence_t *s) noexcept nogil:
    if s.phase != PHASE_DECODING or s.out.constraint != NULL or not s.out.options.speculative:
        return False
    return s.tokens.n_certain > s.tokens.n_prompt and (
        self.looks_up or s.draft.prediction.n or self.propose != NULL or self.head is not None)


cdef void choose(
    Drafter self, sequence_t **drafting, int32_t *taken, int32_t n, int32_t useful, int32_t room
) noexcept nogil:
    """How many tokens of each proposal are decoded."""
    cdef const float *survival[LLAMA_MAX_SEQ]
    cdef int32_t lengths[LLAMA_MAX_SEQ]
    cdef int32_t i
    cdef double gain
    memset(taken, 0, <size_t> n * sizeof(int32_t))
    for i in range(n):
        survival[i] = drafting[i].draft.survival
        lengths[i] = drafting[i].draft.proposal.n
    if self.propose == NULL:
        limit(self, drafting, lengths, n, useful)
    if self.propose != NULL:
        for i in range(n):
            taken[i] = min(lengths[i], lengths[0] if self.in_passes else room)
            if taken[i] > room or (self.in_passes and taken[i] < lengths[0]):
                taken[i] = 0
            room -= taken[i]
    else:
        if self.in_passes:
            gain = plan_passes(&self.times, survival, lengths, n, useful, room, taken)
        else:
            gain = plan_rows(&self.times, survival, lengths, n, useful, room, taken)
        if gain < LEAST_GAIN:
            memset(taken, 0, <size_t> n * sizeof(int32_t))


cdef void limit(Drafter self, sequence_t **drafting, int32_t *lengths, int32_t n, int32_t useful) noexcept nogil:
    """Let those whose drafts have saved nothing yet have one row, all together, or as many as a step may be longer for.
    """
    cdef int32_t i, left = 1
    cdef double most = self.stretch * times_of(&self.times, useful)
    while left < MAX_TIMED and times_of(&self.times, useful + left + 1) <= most:
        left += 1
    for i in range(n):
        if drafting[i].draft.balance < PROVEN:
            lengths[i] = min(lengths[i], left)
            left -= lengths[i]


cdef int32_t most_of(Drafter self, const live_t *live, const sequence_t *s) noexcept nogil:
    """The most tokens that may be drafted for a sequence: behind them there is room for one more, and its state is
    nowhere taken back to where it is to be saved or lent."""
    cdef int32_t most = min(self.most, s.tokens.n_max - s.tokens.n_certain - 1)
    cdef int32_t pending = s.tokens.n_certain - s.tokens.n_past
    cdef int32_t stop = live_stop(live, s, pending + most) - pending
    if stop >= most:
        return most
    return 0 if self.recurrent else max(0, stop)


cdef void propose(Drafter self, const live_t *live, sequence_t *s) noexcept nogil:
    """The proposal of the source that promises most."""
    cdef draft_t *draft = &s.draft
    cdef int32_t most = most_of(self, live, s)
    cdef proposal_t other
    if most <= 0:
        return
    if self.propose != NULL:
        self.propose(self.proposer, s, most, &draft.proposal)
        acceptance_rate(&self.acceptance, draft, SOURCE_OWN, self.propose != NULL)
        return
    if (self.looks_up or draft.prediction.n) and lookup_own(s, most, &self.to_index, &draft.proposal):
        acceptance_rate(&self.acceptance, draft, SOURCE_OWN, self.propose != NULL)
    if draft.prediction.n and lookup_prediction(s, most, &self.to_index, &other):
        acceptance_prefer(&self.acceptance, draft, SOURCE_PREDICTION, &other)
    if self.looks_up:
        answers_propose(&self.answers, s, most, &other)
        if other.n:
            acceptance_prefer(&self.acceptance, draft, SOURCE_ANSWERS, &other)


cdef void drafter_drop(live_t *live) noexcept nogil:
    """Nothing of what was drafted for this step is decoded."""
    cdef int32_t i
    for i in range(live.n):
        sequence_undraft(live.states[i], 0)


cdef void drafter_observe(Drafter self, sequence_t *s, int32_t n_before) noexcept nogil:
    """A sequence that had ``n_before`` tokens got more: learn from what was proposed, decoded or not."""
    cdef draft_t *draft = &s.draft
    cdef const int32_t *came = s.tokens.ids + n_before
    cdef int32_t n_new = s.tokens.n_certain - n_before, accepted
    cdef double start = now()
    accepted = min(acceptance_learn(&self.acceptance, draft, came, n_new), s.rows.n_drafted)
    lookup_observe(&draft.prediction, came, n_new)
    draft.rows += n_new
    self.counters.observed += 1
    if s.rows.n_drafted:
        self.counters.verified += 1
        self.counters.drafted += s.rows.n_drafted
        self.counters.drafted_by[draft.source] += s.rows.n_drafted
        self.counters.accepted += accepted
        self.counters.accepted_by[draft.source] += accepted
        self.counters.lengths[accepted] += 1
        draft.balance = min(draft.balance + accepted - self.row_cost * s.rows.n_drafted, MOST_SAVED)
    if s.phase == PHASE_ENDED:
        if self.looks_up:
            answers_keep(&self.answers, s)
        chains_free(&draft.own)
        chains_free(&draft.prediction.chains)
    self.counters.observe_seconds += now() - start
