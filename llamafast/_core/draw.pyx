"""The draw of a token, straight from the row of logits.

The stages are those of llama.cpp's chain logit_bias, penalties, top_k, top_p, min_p, temp, dist (or greedy), and so is
the distribution: top_p and min_p look at temperature 1, top_p at what top_k left. All of top_k, top_p and min_p keep
the tokens above some logit, so each of them is a search for a threshold and nothing is sorted. Candidates that tie
at top_p's threshold all stay; of those that tie at top_k's the lowest ids stay.

Exponentials of the whole row are what takes time, and bounds of them are enough: a block of the row is drawn by a bound
of its sum and accepted by the sum itself. top_p first draws from the whole row and tests the token against the nucleus,
as FlashInfer's rejection sampling does, by bounds too where these decide; after some rejected ones the token is drawn
from the nucleus. Either way the distribution is exact.

Random numbers depend on the seed and on the token's position alone. A row without a finite maximum gives its first
+inf, or token 0.
"""
from libc.float cimport FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, expf, isfinite, logf
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from .headers.logits cimport (
    LOGITS_BLOCK, LOGITS_BOUND, LOGITS_SLACK, logits_bound_sum_exp, logits_bound_upto, logits_compact, logits_draw,
    logits_find, logits_gather, logits_mask, logits_max, logits_select, logits_sum_exp, logits_uniforms, logits_use,
    logits_weight_upto, logits_weights,
)
from .simd cimport simd_limit

cdef enum:
    SAMPLED = 32        # an estimate looks at every 32nd block
    PROPOSALS = 8       # so many tokens are drawn before the nucleus is looked for

logits_use(simd_limit())


cdef int scratch_init(scratch_t *self, int32_t n_vocab) noexcept nogil:
    """One block of memory, of which a sampler touches what it needs: 0, or -1 when out of memory."""
    cdef size_t blocks = <size_t> n_vocab / LOGITS_BLOCK + 1 + LOGITS_SLACK
    cdef size_t row = <size_t> n_vocab + LOGITS_BLOCK + LOGITS_SLACK
    cdef float *memory = <float *> malloc((3 * blocks + 5 * row) * sizeof(float))
    if memory == NULL:
        return -1
    self.block_max = memory
    self.block_sum = self.block_max + blocks
    self.block_draw = self.block_sum + blocks
    self.logit = self.block_draw + blocks
    self.id = <int32_t *> (self.logit + row)
    self.weight = self.logit + 2 * row
    self.narrowed = self.logit + 3 * row
    self.raw = self.logit + 4 * row
    self.n_vocab = n_vocab
    return 0


cdef void scratch_free(scratch_t *self) noexcept nogil:
    free(self.block_max)
    memset(self, 0, sizeof(scratch_t))


cdef int32_t draw_best(sampler_t *self, scratch_t *scratch, const float *row) noexcept nogil:
    """The lowest id that has the largest logit."""
    cdef float largest = logits_max(row, self.n_vocab, scratch.block_max)
    return 0 if largest == -INFINITY else logits_find(row, self.n_vocab, scratch.block_max, largest)


cdef int32_t keep_top_k(sampler_t *self, scratch_t *scratch, const float *row, float largest) noexcept nogil:
    """Collect the top_k largest logits; returns how many there are."""
    cdef float least = least_of_top(scratch, self.n_vocab, self.top_k, largest)
    cdef int32_t n = logits_gather(row, self.n_vocab, scratch.block_max, least, scratch.logit, scratch.id)
    return cut_top_k(scratch, n, self.top_k, least, largest)


cdef float least_of_top(scratch_t *scratch, int32_t n_vocab, int32_t n_top, float largest) noexcept nogil:
    """A finite number that none of the ``n_top`` largest logits is below; the row's block_max are known."""
    cdef int32_t blocks = (n_vocab + LOGITS_BLOCK - 1) / LOGITS_BLOCK
    if n_top > blocks or largest == -INFINITY:
        return -FLT_MAX
    # so many blocks have a logit this large
    return max(-FLT_MAX, logits_select(
        scratch.block_max, blocks, n_top, False, -INFINITY, largest, scratch.narrowed))


cdef int32_t cut_top_k(scratch_t *scratch, int32_t n, int32_t top_k, float low, float high) noexcept nogil:
    """Reduce n candidates, all of them in [low, high], to the top_k largest; returns how many are left."""
    cdef int32_t i, spare = top_k, kept = 0
    cdef float threshold
    if n <= top_k:
        return n
    threshold = logits_select(scratch.logit, n, top_k, False, low, high, scratch.narrowed)
    n = logits_compact(scratch.logit, n, threshold, scratch.logit, scratch.id)
    if n <= top_k:
        return n
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
    return draw_at(scratch, x, n, self.scale, self.seed, position)


cdef int32_t draw_at(
    scratch_t *scratch, const float *x, int32_t n, float scale, uint64_t seed, uint32_t position
) noexcept nogil:
    cdef float largest
    cdef double total = logits_bound_sum_exp(x, n, scale, scratch.block_max, scratch.block_sum, &largest)
    cdef uint32_t attempt = 0
    if not isfinite(largest):
        return -1
    return draw_by_bounds(scratch, x, n, scale, seed, position, DRAW_TOKEN, &attempt, scratch.block_sum, total, largest)


cdef int32_t draw_by_bounds(
    scratch_t *scratch, const float *x, int32_t n, float scale, uint64_t seed, uint32_t position, uint32_t purpose,
    uint32_t *attempt, const float *block_bound, double total, float largest
) noexcept nogil:
    """An index into n logits, at the first attempt from ``attempt`` on that succeeds.

    Nearly every one does, and one that never does there is not: the largest logit is finite, so its block weighs
    something.
    """
    cdef double u[2]
    cdef int32_t index = -1
    while index < 0:
        logits_uniforms(seed, position, purpose, attempt[0], u)
        attempt[0] += 1
        index = logits_draw(x, n, scale, u, block_bound, total, largest, scratch.weight)
    return index


cdef int32_t propose(
    sampler_t *self, scratch_t *scratch, const float *row, uint32_t position, float largest, float lowest, double total
) noexcept nogil:
    """A token drawn from the whole row that is from ``lowest`` up and in the nucleus, -1 where several were not.

    It is in the nucleus when the tokens no more likely than it weigh more than 1 - top_p. ``total`` and block_sum are
    bounds at first; the first token they cannot decide on has the sums computed.
    """
    cdef int32_t n = self.n_vocab, token, _i
    cdef uint32_t attempt = 0
    cdef double drawn = total, slack = LOGITS_BOUND, cut, weight
    cdef float outside = -INFINITY
    cdef float *block_draw = scratch.block_sum
    cdef float logit
    if self.scale != 1:
        block_draw = scratch.block_draw
        drawn = logits_bound_sum_exp(row, n, self.scale, scratch.block_max, block_draw, &largest)
    for _i in range(PROPOSALS):
        token = draw_by_bounds(
            scratch, row, n, self.scale, self.seed, position, DRAW_PROPOSE, &attempt, block_draw, drawn, largest)
        logit = row[token]
        if logit < lowest or logit <= outside:
            continue
        cut = (1 - self.top_p) * total
        if expf(logit - largest) > cut:
            return token
        if slack > 1:
            weight = logits_bound_upto(
                row, n, logit, slack * cut, scratch.block_max, scratch.block_sum, largest)
            if weight > slack * cut:
                return token
            if weight * slack > cut:
                slack = 1
                total = logits_sum_exp(row, n, 1, scratch.block_max, scratch.block_sum, &largest)
                cut = (1 - self.top_p) * total
                if self.scale == 1:
                    drawn = total
        if slack == 1:
            weight = logits_weight_upto(row, n, logit, cut, scratch.block_max, scratch.block_sum, largest)
            if weight > cut:
                return token
        outside = logit
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
    cdef double total = logits_bound_sum_exp(row, self.n_vocab, 1, scratch.block_max, scratch.block_sum, &largest)
    cdef int32_t n, token
    if not isfinite(largest):
        return -1
    lowest = lowest_by_min_p(self, largest)
    token = propose(self, scratch, row, position, largest, lowest, total)
    if token >= 0:
        return token
    total = logits_sum_exp(row, self.n_vocab, 1, scratch.block_max, scratch.block_sum, &largest)
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


cdef int32_t draw_token(sampler_t *self, scratch_t *scratch, const float *row, uint32_t position) noexcept nogil:
    cdef int32_t token
    if self.greedy:
        return draw_best(self, scratch, row)
    if self.top_k > 0:
        token = draw_top_k(self, scratch, row, position)
    elif self.top_p < 1:
        token = draw_top_p(self, scratch, row, position)
    elif self.min_p > 0:
        token = draw_min_p(self, scratch, row, position)
    else:
        token = draw(self, scratch, row, self.n_vocab, position)
    return token if token >= 0 else draw_best(self, scratch, row)


cdef void draw_mask(float *row, int32_t n_vocab, const uint32_t *allowed) noexcept nogil:
    logits_mask(row, n_vocab, allowed)
