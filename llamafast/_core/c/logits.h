/* Kernels on one row of logits. Nothing here allocates, and nothing trusts the row: NaN counts as -inf, and -inf has
 * probability 0. A row is looked at in blocks of LOGITS_BLOCK entries, the last one may be shorter.
 *
 * Arrays that a kernel fills need room for LOGITS_SLACK entries past their length. */
#ifndef LLAMAFAST_LOGITS_H
#define LLAMAFAST_LOGITS_H

#include <stdbool.h>
#include <stdint.h>

enum { LOGITS_BLOCK = 256, LOGITS_SLACK = 16 };

/* Use the best instruction set (see simd/level.h) that the processor has and that is not above `limit`; returns it. Until
 * it is called the baseline is in use. Not thread-safe. */
int logits_use(int limit);

/* The largest entry, and the largest of every block. */
float logits_max(const float *x, int32_t n, float *block_max);

/* Sum of exp((x[i] - max) * scale) over the row and over every block, with max the row's largest entry, which must be
 * finite to give the sums a meaning. scale >= 0. A term has a relative error below 1e-6 down to exp(-15), which grows to
 * 1e-5 at 2^-124; smaller terms are 0. */
double logits_sum_exp(const float *x, int32_t n, float scale, float *block_max, float *block_sum, float *max);

/* From the sums that logits_sum_exp gives to LOGITS_BOUND times them, in a third of the time. */
#define LOGITS_BOUND 1.0616
double logits_bound_sum_exp(const float *x, int32_t n, float scale, float *block_max, float *block_bound, float *max);

/* weight[i] = exp((x[i] - max) * scale) for x[i] <= max; returns their sum. */
double logits_weights(const float *x, int32_t n, float max, float scale, float *weight);

/* The first index of the value, which is the maximum of some block; -1 when there is none. */
int32_t logits_find(const float *x, int32_t n, const float *block_max, float value);

/* Collect the entries x[i] >= threshold in order, with their indices; threshold > -inf. Returns how many. */
int32_t logits_gather(const float *x, int32_t n, const float *block_max, float threshold, float *value, int32_t *index);

/* Keep value[i] and index[i] where key[i] >= threshold, in order, in place; key may be value. Returns how many. */
int32_t logits_compact(const float *key, int32_t n, float threshold, float *value, int32_t *index);

/* The threshold that cuts off the smallest top of x whose mass reaches `target`: the largest x[i] such that the
 * x[j] >= x[i] weigh at least `target` together. If all of x weighs less, it is one that no x[i] >= low is below. An
 * entry weighs itself (`by_value`, entries >= 0) or 1. The threshold is known to lie in [low, high], and no entry lies
 * above high. n > 0, target > 0. `narrowed` holds n entries. */
float logits_select(
    const float *x, int32_t n, double target, bool by_value, float low, float high, float *narrowed);

/* What the entries <= limit weigh together, an entry weighing exp(x[i] - max), or as soon as it is more than `enough`
 * some part of it that is. The rest is from logits_sum_exp for a scale of 1. */
double logits_weight_upto(
    const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_sum, float max);

/* The same with bounds: those of logits_bound_sum_exp, and from the weight to LOGITS_BOUND times it. */
double logits_bound_upto(
    const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_bound, float max);

/* Draw an index with probability proportional to exp(x[i] * scale), by inversion of u[0] in [0, 1), or -1: then it has to
 * be called again with other u. The rest is from logits_bound_sum_exp for the same scale: a block is drawn by its bound
 * and accepted, by u[1] in [0, 1), as often as its sum is part of that (von Neumann's rejection). With logits_sum_exp's
 * sums instead and u[1] = 0 there is no -1. `weight` holds LOGITS_BLOCK entries. */
int32_t logits_draw(
    const float *x, int32_t n, float scale, const double *u, const float *block_bound, double total, float max,
    float *weight);

/* Set x[i] to -inf where bit i of `allowed` is 0. */
void logits_mask(float *x, int32_t n, const uint32_t *allowed);

/* Two numbers in [0, 1) that depend on nothing but the arguments: Philox 4x32-10, a counter-based generator
 * (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011). */
void logits_uniforms(uint64_t seed, uint32_t position, uint32_t draw, uint32_t attempt, double *u);

#endif
