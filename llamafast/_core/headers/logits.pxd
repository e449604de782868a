# What logits.h declares and documents.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef extern from "logits.h" nogil:
    enum:
        LOGITS_BLOCK
        LOGITS_SLACK
    int logits_use(int limit)
    float logits_max(const float *x, int32_t n, float *block_max)
    double logits_sum_exp(const float *x, int32_t n, float scale, float *block_max, float *block_sum, float *max)
    double LOGITS_BOUND
    double logits_bound_sum_exp(
        const float *x, int32_t n, float scale, float *block_max, float *block_bound, float *max)
    double logits_weights(const float *x, int32_t n, float max, float scale, float *weight)
    int32_t logits_find(const float *x, int32_t n, const float *block_max, float value)
    int32_t logits_gather(
        const float *x, int32_t n, const float *block_max, float threshold, float *value, int32_t *index)
    int32_t logits_compact(const float *key, int32_t n, float threshold, float *value, int32_t *index)
    float logits_select(
        const float *x, int32_t n, double target, bint by_value, float low, float high, float *narrowed)
    double logits_weight_upto(
        const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_sum,
        float max)
    double logits_bound_upto(
        const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_bound,
        float max)
    int32_t logits_draw(
        const float *x, int32_t n, float scale, const double *u, const float *block_bound, double total, float max,
        float *weight)
    void logits_mask(float *x, int32_t n, const uint32_t *allowed)
    void logits_uniforms(uint64_t seed, uint32_t position, uint32_t draw, uint32_t attempt, double *u)
