"""The draw of a token by stages, one after the other, as llama.cpp's chain does it.

The general way, for stages that are rarer or come in another order than ``draw`` takes them: all tokens are candidates
at first, each stage keeps some of them or scales their logits, and what is left is drawn from.
"""
from libc.float cimport FLT_MAX, FLT_MIN
from libc.math cimport isfinite, log2
from libc.stdint cimport int32_t, uint32_t, uint64_t

from .draw cimport (
    DRAW_XTC, STAGE_DRY, STAGE_INFILL, STAGE_MIN_P, STAGE_MIROSTAT, STAGE_PENALTIES, STAGE_TOP_K, STAGE_TOP_N_SIGMA,
    STAGE_TOP_P, STAGE_TYPICAL_P, STAGE_XTC, cut_top_k, draw_at, draw_best, keep_top_p, lowest_by_min_p, sampler_t,
    scratch_t, stage_t,
)
from .dry cimport dry_penalize
from .headers.logits cimport (
    logits_compact, logits_gather, logits_max, logits_select, logits_uniforms, logits_use, logits_weights,
)
from .infill cimport MOST_CANDIDATES, infill_keep
from .penalties cimport penalize
from .simd cimport simd_limit

# What stages.h documents; nobody else calls it.
cdef extern from "stages.h" nogil:
    int32_t stage_top_n_sigma(float *logit, int32_t *id, int32_t n, float sigmas)
    int32_t stage_typical_p(
        float *logit, int32_t *id, int32_t n, float p, float largest, const float *weight, double total, float *score)
    int32_t stage_xtc(float *logit, int32_t *id, int32_t n, float threshold, const float *weight, double total)
    float stage_dynamic_temperature(
        const float *logit, int32_t n, float low, float high, float exponent, float largest, const float *weight,
        double total)
    int32_t stage_mirostat_k(const float *largest, int32_t m, int32_t n_vocab, float mu)

cdef enum:
    MIROSTAT_M = 100    # the most likely tokens that mirostat 1.0 estimates by

logits_use(simd_limit())


cdef int32_t draw_by_stages(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil:
    cdef int32_t i, n, k
    cdef float largest = logits_max(row, self.n_vocab, scratch.block_max)
    if not isfinite(largest):
        return draw_best(self, scratch, row)
    n = logits_gather(row, self.n_vocab, scratch.block_max, -FLT_MAX, scratch.logit, scratch.id)
    for k in range(self.n_stages):
        if self.stages[k] == STAGE_PENALTIES or self.stages[k] == STAGE_DRY:
            # they look tokens up by id: candidates go back to the row for it
            for i in range(n):
                row[scratch.id[i]] = scratch.logit[i]
            if self.stages[k] == STAGE_PENALTIES:
                i = penalize(&self.penalties, row, history, n_history)
            else:
                i = dry_penalize(&self.dry, row, history, n_history)
            if i != 0:
                return -1
            for i in range(n):
                scratch.logit[i] = row[scratch.id[i]]
        elif self.stages[k] == STAGE_INFILL:
            n = cut_top_k(scratch, n, MOST_CANDIDATES, -FLT_MAX, logits_max(scratch.logit, n, scratch.block_max))
            n = infill_keep(self.infill, scratch.logit, scratch.id, n, row)
        else:
            n = apply_stage(self, scratch, self.stages[k], n, <uint32_t> n_history)
        if n == 0:
            return draw_best(self, scratch, row)
    i = draw_candidate(scratch, n, self.seed, <uint32_t> n_history)
    if i < 0:
        return draw_best(self, scratch, row)
    if self.mirostat:
        self.mirostat_mu -= self.mirostat_eta * (surprise(scratch, n, i) - self.mirostat_tau)
    return scratch.id[i]


cdef int32_t apply_stage(
    sampler_t *self, scratch_t *scratch, stage_t stage, int32_t n, uint32_t position
) noexcept nogil:
    """Reduce or scale n candidates; returns how many are left, 0 where the largest is not finite."""
    cdef float largest = logits_max(scratch.logit, n, scratch.block_max)
    cdef float temperature, limit
    cdef double total
    cdef double u[2]
    cdef int32_t i
    if not isfinite(largest):
        return 0
    if stage == STAGE_TOP_K:
        return cut_top_k(scratch, n, self.top_k, -FLT_MAX, largest)
    if stage == STAGE_MIN_P:
        return logits_compact(scratch.logit, n, lowest_by_min_p(self, largest), scratch.logit, scratch.id)
    if stage == STAGE_TOP_N_SIGMA:
        return stage_top_n_sigma(scratch.logit, scratch.id, n, self.top_n_sigma)
    if stage == STAGE_MIROSTAT and self.mirostat == 1:
        return mirostat_top_k(self, scratch, n, largest)
    total = logits_weights(scratch.logit, n, largest, 1, scratch.weight)
    if stage == STAGE_TOP_P:
        return keep_top_p(self, scratch, n, total)
    if stage == STAGE_TYPICAL_P:
        return stage_typical_p(
            scratch.logit, scratch.id, n, self.typical_p, largest, scratch.weight, total, scratch.narrowed)
    if stage == STAGE_XTC:
        logits_uniforms(self.seed, position, DRAW_XTC, 0, u)
        if u[0] >= self.xtc_probability:
            return n
        return stage_xtc(scratch.logit, scratch.id, n, self.xtc_threshold, scratch.weight, total)
    if stage == STAGE_MIROSTAT:
        # a surprise of at most mu bits: -log2(weight / total) <= mu
        limit = <float> min(1.0, total * 2.0 ** -self.mirostat_mu)
        return logits_compact(scratch.weight, n, limit, scratch.logit, scratch.id)
    temperature = self.temperature
    if self.dynatemp_range > 0:
        temperature = stage_dynamic_temperature(
            scratch.logit, n, max(0, temperature - self.dynatemp_range), temperature + self.dynatemp_range,
            self.dynatemp_exponent, largest, scratch.weight, total)
    if not temperature > 0:
        return cut_top_k(scratch, n, 1, -FLT_MAX, largest)
    for i in range(n):
        scratch.logit[i] = max(-FLT_MAX, (scratch.logit[i] - largest) / temperature)
    return n


cdef int32_t mirostat_top_k(sampler_t *self, scratch_t *scratch, int32_t n, float largest) noexcept nogil:
    cdef float top[MIROSTAT_M]
    cdef int32_t i, k, m = 0
    cdef float threshold, value
    if n < 2:
        return n
    threshold = logits_select(
        scratch.logit, n, min(n, <int32_t> MIROSTAT_M), False, -FLT_MAX, largest, scratch.narrowed)
    for i in range(n):
        value = scratch.logit[i]
        if value < threshold or (m == MIROSTAT_M and value <= top[m - 1]):
            continue
        m = min(m + 1, <int32_t> MIROSTAT_M)
        k = m - 1
        while k > 0 and top[k - 1] < value:
            top[k] = top[k - 1]
            k -= 1
        top[k] = value
    return cut_top_k(scratch, n, stage_mirostat_k(top, m, self.n_vocab, self.mirostat_mu), -FLT_MAX, largest)


cdef int32_t draw_candidate(scratch_t *scratch, int32_t n, uint64_t seed, uint32_t position) noexcept nogil:
    """An index into n candidates, -1 when the largest is not finite."""
    return draw_at(scratch, scratch.logit, n, 1, seed, position)


cdef float surprise(scratch_t *scratch, int32_t n, int32_t at) noexcept nogil:
    """-log2 of a candidate's probability."""
    cdef float largest = logits_max(scratch.logit, n, scratch.block_max)
    cdef double total = logits_weights(scratch.logit, n, largest, 1, scratch.weight)
    return <float> -log2(max(<double> scratch.weight[at], FLT_MIN) / total)
