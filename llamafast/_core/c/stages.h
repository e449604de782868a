/* Rare stages of sampling, on candidates: n logits, none of them NaN or infinite, and the ids they belong to. A stage
 * keeps some of them, in order and in place, and returns how many, at least one.
 *
 * `weight` is exp(logit - largest) where a stage wants it, and `total` the sum of the weights. */
#ifndef LLAMAFAST_STAGES_H
#define LLAMAFAST_STAGES_H

#include <stdint.h>

/* Keep what is at most `sigmas` standard deviations below the largest (Tang et al.: Top-n-sigma, 2024). */
int32_t stage_top_n_sigma(float *logit, int32_t *id, int32_t n, float sigmas);

/* Keep those whose surprise is nearest to the expected one, until they weigh more than the share p; all that tie at the
 * border stay (Meister et al.: Locally typical sampling, 2022). `score` is room for n floats. */
int32_t stage_typical_p(
    float *logit, int32_t *id, int32_t n, float p, float largest, const float *weight, double total, float *score);

/* Of those whose probability is at least the threshold only the least likely stays: exclude top choices. */
int32_t stage_xtc(float *logit, int32_t *id, int32_t n, float threshold, const float *weight, double total);

/* A temperature from low to high, by the entropy of the candidates (Zhu et al.: EDT, 2024). */
float stage_dynamic_temperature(
    const float *logit, int32_t n, float low, float high, float exponent, float largest, const float *weight,
    double total);

/* Mirostat 1.0's top_k for a target of mu bits, from the m largest logits in descending order (Basu et al., 2020). */
int32_t stage_mirostat_k(const float *largest, int32_t m, int32_t n_vocab, float mu);

#endif
