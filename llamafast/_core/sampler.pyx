"""The choice of the next token, straight on the row of logits.

The stages are those of llama.cpp's chain logit_bias, penalties, top_k, top_p, min_p, temp, dist (or greedy), and so is
the distribution: top_p and min_p look at temperature 1, top_p at what top_k left. All of top_k, top_p and min_p keep
the tokens above some logit, so each of them is a search for a threshold and nothing is sorted. Candidates that tie
at top_p's threshold all stay; of those that tie at top_k's the lowest ids stay. Where it is cheaper, top_p first draws
from the whole row and tests the token against the nucleus, as FlashInfer's rejection sampling does; a rejected draw is
followed by one from the nucleus, so the distribution is the same.

Random numbers depend on the seed and on the token's position alone. A row without a finite maximum gives its first
+inf, or token 0.
"""
from libc.float cimport FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, expf, isfinite, logf
from libc.stdint cimport INT32_MAX, int32_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from .balance cimport SAMPLER, born, died
from .headers.logits cimport (
    LOGITS_AVX512, LOGITS_BLOCK, LOGITS_SLACK, logits_compact, logits_draw, logits_find, logits_gather, logits_mask,
    logits_max, logits_outweighs, logits_select, logits_sum_exp, logits_uniform, logits_use, logits_weights,
)

from operator import index

cdef enum:
    SAMPLED = 32    # an estimate looks at every 32nd block
    FLAT = 128      # a row is flat if its tokens weigh more than a 128th of what they would if all were the best

logits_use(LOGITS_AVX512)


cdef class Sampler:
    """How one sequence chooses its tokens.

    ``temperature`` 0 or below is greedy; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``repetition_penalty`` 1 and the other
    penalties 0 are off; ``top_p`` 0 keeps one token. Penalties look at the last ``penalty_last_n`` tokens of the
    history, at all of it with -1. ``logit_bias`` is pairs of token id and bias, which add up. ``seed`` is an integer of
    64 bits, signed or not. Without arguments tokens are drawn from the distribution as it is.

    Raises ValueError for a value that is not finite or out of range.
    """

    def __cinit__(
        self, int32_t n_vocab, *, double temperature=1.0, top_k=0, double top_p=1.0, double min_p=0.0,
        double repetition_penalty=1.0, double presence_penalty=0.0, double frequency_penalty=0.0, penalty_last_n=64,
        logit_bias=(), seed=0,
    ):
        cdef sampler_t *s = &self.state
        born(SAMPLER)
        self.counted = True
        if n_vocab < 1:
            raise ValueError(f"n_vocab is {n_vocab}: expected at least 1")
        if not isfinite(temperature):
            raise ValueError(f"temperature is {temperature}: expected a finite number")
        top_k, penalty_last_n, seed = index(top_k), index(penalty_last_n), index(seed)
        if top_k < 0:
            raise ValueError(f"top_k is {top_k}: expected 0 or more")
        if penalty_last_n < -1:
            raise ValueError(f"penalty_last_n is {penalty_last_n}: expected -1 or more")
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}: expected an integer of 64 bits")
        s.n_vocab = s.counts.n_vocab = n_vocab
        s.greedy = temperature <= 0
        # a scale of infinity would turn the best token, 0 above the best, into NaN
        s.scale = 0.0 if s.greedy else <float> min(1 / temperature, 1e30)
        s.top_k = 0 if top_k >= n_vocab else top_k
        s.top_p = share("top_p", top_p)
        s.min_p = share("min_p", min_p)
        s.repetition_penalty = finite("repetition_penalty", repetition_penalty)
        if s.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {repetition_penalty}: expected more than 0")
        s.presence_penalty = finite("presence_penalty", presence_penalty)
        s.frequency_penalty = finite("frequency_penalty", frequency_penalty)
        s.penalty_last_n = INT32_MAX if penalty_last_n == -1 else min(penalty_last_n, INT32_MAX)
        if s.repetition_penalty == 1 and s.presence_penalty == 0 and s.frequency_penalty == 0:
            s.penalty_last_n = 0
        s.seed = seed & 0xFFFFFFFFFFFFFFFF
        copy_bias(s, list(logit_bias))

    def __dealloc__(self):
        if self.counted:
            died(SAMPLER)
        free(self.state.bias)
        free(self.state.counts.slots)
        scratch_free(&self.own_scratch)

    def pick(self, float[::1] row not None, const int32_t[::1] history not None):
        """The token that follows ``history``; edits ``row`` (n_vocab,) in place.

        Between two calls the history may grow, and shrink and change within its last 64 tokens.
        """
        cdef int32_t token
        if row.shape[0] != self.state.n_vocab:
            raise ValueError(f"a row of {row.shape[0]} logits for a vocabulary of {self.state.n_vocab}")
        if history.shape[0] > INT32_MAX:
            raise ValueError(f"a history of {history.shape[0]} tokens")
        if self.own_scratch.n_vocab == 0 and scratch_init(&self.own_scratch, self.state.n_vocab) != 0:
            raise MemoryError
        token = sampler_pick(
            &self.state, &self.own_scratch, &row[0],
            &history[0] if history.shape[0] > 0 else NULL, <int32_t> history.shape[0])
        if token < 0:
            raise MemoryError
        return token


cdef float finite(str name, double value) except? -1:
    cdef float single = <float> value
    if not isfinite(single):
        raise ValueError(f"{name} is {value}: expected a finite number")
    return single


cdef float share(str name, double value) except? -1:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: expected a number from 0 to 1")
    return <float> value


cdef int copy_bias(sampler_t *self, list pairs) except -1:
    cdef Py_ssize_t i
    if not pairs:
        return 0
    self.bias = <bias_t *> malloc(<size_t> len(pairs) * sizeof(bias_t))
    if self.bias == NULL:
        raise MemoryError
    for i, (token, bias) in enumerate(pairs):
        if not 0 <= index(token) < self.n_vocab:
            raise ValueError(f"logit_bias: token id {token} is outside the vocabulary of {self.n_vocab}")
        self.bias[i] = bias_t(token, finite("logit_bias", bias))
    self.n_bias = <int32_t> len(pairs)
    return 0


cdef int scratch_init(scratch_t *self, int32_t n_vocab) noexcept nogil:
    """One block of memory, of which a sampler touches what it needs: 0, or -1 when out of memory."""
    cdef size_t blocks = <size_t> n_vocab / LOGITS_BLOCK + 1 + LOGITS_SLACK
    cdef size_t row = <size_t> n_vocab + LOGITS_BLOCK + LOGITS_SLACK
    cdef float *memory = <float *> malloc((2 * blocks + 4 * row) * sizeof(float))
    if memory == NULL:
        return -1
    self.block_max = memory
    self.block_sum = self.block_max + blocks
    self.logit = self.block_sum + blocks
    self.id = <int32_t *> (self.logit + row)
    self.weight = self.logit + 2 * row
    self.narrowed = self.logit + 3 * row
    self.n_vocab = n_vocab
    return 0


cdef void scratch_free(scratch_t *self) noexcept nogil:
    free(self.block_max)
    memset(self, 0, sizeof(scratch_t))


cdef count_t *counts_slot(counts_t *self, int32_t token) noexcept nogil:
    """The token's slot, or the free one where it belongs."""
    cdef uint32_t mask = <uint32_t> self.capacity - 1
    cdef uint32_t at = <uint32_t> token * <uint32_t> 0x9E3779B1
    at = (at ^ at >> 15) & mask
    while self.slots[at].token != token and self.slots[at].token >= 0:
        at = at + 1 & mask
    return &self.slots[at]


cdef int counts_grow(counts_t *self) noexcept nogil:
    """Make room and forget tokens whose count is 0: 0, or -1 when out of memory."""
    cdef counts_t grown = self[0]
    cdef int32_t i
    grown.n_used = 0
    for i in range(self.capacity):
        grown.n_used += self.slots[i].count > 0
    grown.capacity = 64
    while grown.capacity < 4 * grown.n_used:
        grown.capacity *= 2
    grown.slots = <count_t *> malloc(<size_t> grown.capacity * sizeof(count_t))
    if grown.slots == NULL:
        return -1
    memset(grown.slots, 0xFF, <size_t> grown.capacity * sizeof(count_t))
    for i in range(self.capacity):
        if self.slots[i].count > 0:
            counts_slot(&grown, self.slots[i].token)[0] = self.slots[i]
    free(self.slots)
    self[0] = grown
    return 0


cdef int counts_add(counts_t *self, int32_t token) noexcept nogil:
    """0, or -1 when out of memory."""
    cdef count_t *slot
    if <uint32_t> token >= <uint32_t> self.n_vocab:
        return 0
    if 2 * (self.n_used + 1) > self.capacity and counts_grow(self) != 0:
        return -1
    slot = counts_slot(self, token)
    if slot.token < 0:
        slot[0] = count_t(token, 0)
        self.n_used += 1
    slot.count += 1
    return 0


cdef void counts_remove(counts_t *self, int32_t token) noexcept nogil:
    if <uint32_t> token < <uint32_t> self.n_vocab:
        counts_slot(self, token).count -= 1


cdef void counts_reset(counts_t *self, int32_t begin) noexcept nogil:
    self.begin = self.end = begin
    self.n_used = 0
    if self.capacity > 0:
        memset(self.slots, 0xFF, <size_t> self.capacity * sizeof(count_t))


cdef int counts_follow(counts_t *self, const int32_t *history, int32_t n_history, int32_t window) noexcept nogil:
    """Count history[-window:], starting from what is counted already: 0, or -1 when out of memory."""
    cdef int32_t begin = max(0, n_history - window)
    cdef int32_t same = max(self.end - RECENT, self.begin)
    cdef int32_t both = min(self.end, n_history)
    cdef int32_t i
    if both < same or begin >= self.end or (same < both and history[same] != self.recent[same % RECENT]):
        counts_reset(self, begin)
        same = both = begin
    while same < both and history[same] == self.recent[same % RECENT]:
        same += 1
    while self.end > same:
        self.end -= 1
        counts_remove(self, self.recent[self.end % RECENT])
    while self.end < n_history:
        if counts_add(self, history[self.end]) != 0:
            return -1
        self.end += 1
    while self.begin > begin:
        if counts_add(self, history[self.begin - 1]) != 0:
            return -1
        self.begin -= 1
    while self.begin < begin:
        counts_remove(self, history[self.begin])
        self.begin += 1
    for i in range(max(self.end - RECENT, begin), self.end):
        self.recent[i % RECENT] = history[i]
    return 0


cdef int penalize(sampler_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil:
    """0, or -1 when out of memory."""
    cdef count_t *slot
    cdef float *logit
    cdef int32_t i
    if counts_follow(&self.counts, history, n_history, self.penalty_last_n) != 0:
        counts_reset(&self.counts, 0)
        return -1
    for i in range(self.counts.capacity):
        slot = &self.counts.slots[i]
        if slot.count <= 0:
            continue
        logit = &row[slot.token]
        logit[0] = logit[0] * self.repetition_penalty if logit[0] <= 0 else logit[0] / self.repetition_penalty
        logit[0] -= <float> slot.count * self.frequency_penalty + self.presence_penalty
    return 0


cdef int32_t best(sampler_t *self, scratch_t *scratch, const float *row) noexcept nogil:
    """The lowest id that has the largest logit."""
    cdef float largest = logits_max(row, self.n_vocab, scratch.block_max)
    return 0 if largest == -INFINITY else logits_find(row, self.n_vocab, scratch.block_max, largest)


cdef int32_t keep_top_k(sampler_t *self, scratch_t *scratch, const float *row, float largest) noexcept nogil:
    """Collect the top_k largest logits; returns how many there are."""
    cdef int32_t blocks = (self.n_vocab + LOGITS_BLOCK - 1) / LOGITS_BLOCK
    cdef int32_t i, n, spare, kept = 0
    cdef float threshold = -FLT_MAX
    if self.top_k <= blocks:
        # so many blocks have a logit this large
        threshold = max(threshold, logits_select(
            scratch.block_max, blocks, self.top_k, False, -INFINITY, largest, scratch.narrowed))
    n = logits_gather(row, self.n_vocab, scratch.block_max, threshold, scratch.logit, scratch.id)
    if n <= self.top_k:
        return n
    threshold = logits_select(scratch.logit, n, self.top_k, False, threshold, largest, scratch.narrowed)
    n = logits_compact(scratch.logit, n, threshold, scratch.logit, scratch.id)
    if n <= self.top_k:
        return n
    spare = self.top_k
    for i in range(n):
        spare -= scratch.logit[i] > threshold
    for i in range(n):
        if scratch.logit[i] > threshold or spare > 0:
            spare -= scratch.logit[i] == threshold
            scratch.logit[kept] = scratch.logit[i]
            scratch.id[kept] = scratch.id[i]
            kept += 1
    return kept


cdef float least_weight(double cut, int32_t n) noexcept nogil:
    """A weight below which no token survives the loss of ``cut``: n of them weigh less. 1e-3 covers rounding."""
    return max(<float> (cut / n * (1 - 1e-3)), FLT_MIN)


cdef int32_t keep_top_p(sampler_t *self, scratch_t *scratch, int32_t n, double total) noexcept nogil:
    """Reduce n weighted candidates to the nucleus of what weighs ``total``; returns how many are left."""
    cdef float low = least_weight((1 - self.top_p) * total, self.n_vocab)
    cdef float threshold = logits_select(
        scratch.weight, n, max(self.top_p * total, FLT_MIN), True, low, 1, scratch.narrowed)
    return logits_compact(scratch.weight, n, threshold, scratch.logit, scratch.id)


cdef float lowest_by_min_p(sampler_t *self, float largest) noexcept nogil:
    return max(-FLT_MAX, largest + logf(self.min_p)) if self.min_p > 0 else -FLT_MAX


cdef float estimated_bound(
    sampler_t *self, scratch_t *scratch, const float *row, float largest, double cut
) noexcept nogil:
    """A logit such that the tokens below it probably weigh less than ``cut``, but not much less, from some blocks."""
    cdef int32_t n = 0, at = 0
    cdef double total = 0, share
    cdef float weight
    while at <= self.n_vocab - LOGITS_BLOCK:
        total += logits_weights(row + at, LOGITS_BLOCK, largest, 1, scratch.weight + n)
        n += LOGITS_BLOCK
        at += SAMPLED * LOGITS_BLOCK
    share = 0.8 * cut * n / self.n_vocab
    weight = logits_select(
        scratch.weight, n, max(total - share, FLT_MIN), True, least_weight(share, n), 1, scratch.narrowed)
    return largest + logf(max(weight, FLT_MIN))


cdef int32_t gather_top_p(
    sampler_t *self, scratch_t *scratch, const float *row, float largest, float lowest, double total
) noexcept nogil:
    """Collect the nucleus from ``lowest`` up and some more, with weights; returns how many there are."""
    cdef double cut = (1 - self.top_p) * total
    cdef float safe = max(lowest, largest + logf(least_weight(cut, self.n_vocab)))
    cdef float bound = safe
    cdef int32_t n
    if self.n_vocab >= 4 * SAMPLED * LOGITS_BLOCK:
        bound = max(safe, estimated_bound(self, scratch, row, largest, cut))
    n = logits_gather(row, self.n_vocab, scratch.block_max, bound, scratch.logit, scratch.id)
    if logits_weights(scratch.logit, n, largest, 1, scratch.weight) < self.top_p * total and bound > safe:
        n = logits_gather(row, self.n_vocab, scratch.block_max, safe, scratch.logit, scratch.id)
        logits_weights(scratch.logit, n, largest, 1, scratch.weight)
    return n


cdef int32_t draw(sampler_t *self, scratch_t *scratch, const float *x, int32_t n, uint32_t position) noexcept nogil:
    """An index into n logits drawn at the sampler's temperature, -1 when the largest is not finite."""
    cdef float largest
    cdef double total = logits_sum_exp(x, n, self.scale, scratch.block_max, scratch.block_sum, &largest)
    if not isfinite(largest):
        return -1
    return logits_draw(
        x, n, self.scale, logits_uniform(self.seed, position, 0), scratch.block_max, scratch.block_sum, total,
        scratch.weight)


cdef int32_t propose(
    sampler_t *self, scratch_t *scratch, const float *row, uint32_t position, float largest, float lowest, double total
) noexcept nogil:
    """A token drawn from the whole row if it is from ``lowest`` up and in the nucleus, else -1.

    It is in the nucleus when the tokens no more likely than it weigh more than 1 - top_p, which is soon found out.
    """
    cdef double cut = (1 - self.top_p) * total
    cdef double weight = total
    cdef int32_t token
    cdef float logit
    if self.scale != 1:
        weight = logits_sum_exp(row, self.n_vocab, self.scale, scratch.block_max, scratch.block_sum, &largest)
    token = logits_draw(
        row, self.n_vocab, self.scale, logits_uniform(self.seed, position, 1), scratch.block_max, scratch.block_sum,
        weight, scratch.weight)
    logit = row[token]
    if logit >= lowest and (expf(logit - largest) > cut or logits_outweighs(
        row, self.n_vocab, logit, cut, scratch.block_max, scratch.block_sum if self.scale == 1 else NULL, largest
    )):
        return token
    return -1


cdef int32_t draw_top_k(sampler_t *self, scratch_t *scratch, const float *row, uint32_t position) noexcept nogil:
    cdef float largest = logits_max(row, self.n_vocab, scratch.block_max)
    cdef double total
    cdef int32_t n
    if not isfinite(largest):
        return -1
    n = keep_top_k(self, scratch, row, largest)
    if self.top_p < 1:
        total = logits_weights(scratch.logit, n, largest, 1, scratch.weight)
        n = keep_top_p(self, scratch, n, total)
    n = logits_compact(scratch.logit, n, lowest_by_min_p(self, largest), scratch.logit, scratch.id)
    return scratch.id[draw(self, scratch, scratch.logit, n, position)]


cdef int32_t draw_top_p(sampler_t *self, scratch_t *scratch, const float *row, uint32_t position) noexcept nogil:
    cdef float largest, lowest
    cdef double total = logits_sum_exp(row, self.n_vocab, 1, scratch.block_max, scratch.block_sum, &largest)
    cdef int32_t n, token
    if not isfinite(largest):
        return -1
    lowest = lowest_by_min_p(self, largest)
    # Rejection is next to free when the sums serve the draw too, and pays in a flat row, whose nucleus is most of it.
    if self.scale == 1 or total * FLAT > self.n_vocab:
        token = propose(self, scratch, row, position, largest, lowest, total)
        if token >= 0:
            return token
    n = gather_top_p(self, scratch, row, largest, lowest, total)
    n = keep_top_p(self, scratch, n, total)
    return scratch.id[draw(self, scratch, scratch.logit, n, position)]


cdef int32_t draw_min_p(sampler_t *self, scratch_t *scratch, const float *row, uint32_t position) noexcept nogil:
    cdef float largest = logits_max(row, self.n_vocab, scratch.block_max)
    cdef int32_t n
    if not isfinite(largest):
        return -1
    n = logits_gather(
        row, self.n_vocab, scratch.block_max, lowest_by_min_p(self, largest), scratch.logit, scratch.id)
    return scratch.id[draw(self, scratch, scratch.logit, n, position)]


cdef int32_t sampler_pick(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil:
    cdef uint32_t position = <uint32_t> n_history
    cdef int32_t i, token
    if scratch.n_vocab < self.n_vocab:
        return -1
    for i in range(self.n_bias):
        row[self.bias[i].token] += self.bias[i].bias
    if self.penalty_last_n != 0 and penalize(self, row, history, n_history) != 0:
        return -1
    if self.greedy:
        return best(self, scratch, row)
    if self.top_k > 0:
        token = draw_top_k(self, scratch, row, position)
    elif self.top_p < 1:
        token = draw_top_p(self, scratch, row, position)
    elif self.min_p > 0:
        token = draw_min_p(self, scratch, row, position)
    else:
        token = draw(self, scratch, row, self.n_vocab, position)
    return token if token >= 0 else best(self, scratch, row)


cdef void sampler_mask(float *row, int32_t n_vocab, const uint32_t *allowed) noexcept nogil:
    logits_mask(row, n_vocab, allowed)
