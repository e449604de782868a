# What stages.h declares and documents.
from libc.stdint cimport int32_t

cdef extern from "stages.h" nogil:
    int32_t stage_top_n_sigma(float *logit, int32_t *id, int32_t n, float sigmas)
    int32_t stage_typical_p(
        float *logit, int32_t *id, int32_t n, float p, float largest, const float *weight, double total, float *score)
    int32_t stage_xtc(float *logit, int32_t *id, int32_t n, float threshold, const float *weight, double total)
    float stage_dynamic_temperature(
        const float *logit, int32_t n, float low, float high, float exponent, float largest, const float *weight,
        double total)
    int32_t stage_mirostat_k(const float *largest, int32_t m, int32_t n_vocab, float mu)
