#include "logits.h"

#include "simd/level.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* The bits of a float count 2^23 from each power of 2 to the next; those of 1, and some more to be safe from rounding. */
#define BITS_OF_E (LOG2_E * 0x1p23f)
#define BOUND_OF_1 (127 * 0x1p23f + 128)

struct kernels {
    void (*max)(const float *, int32_t, float *);
    void (*sum_exp)(const float *, int32_t, float, float *, float *);
    void (*bound_sum_exp)(const float *, int32_t, float, float *, float *);
    double (*weights)(const float *, int32_t, float, float, float *);
    float (*weight_upto)(const float *, int32_t, float, float);
    float (*bound_upto)(const float *, int32_t, float, float);
    int32_t (*gather)(const float *, int32_t, const float *, float, float *, int32_t *);
    int32_t (*compact)(const float *, int32_t, float, float *, int32_t *);
    double (*above)(const float *, int32_t, float, bool);
    int32_t (*narrow)(const float *, int32_t, float, bool, float *);
    void (*mask)(float *, int32_t, const uint32_t *);
};

/* The block at x + at; a short one is copied to `tail` and filled up with -inf. */
static inline const float *whole_block(const float *x, int32_t n, int32_t at, float *tail)
{
    if (n - at >= LOGITS_BLOCK) {
        return x + at;
    }
    memcpy(tail, x + at, (size_t) (n - at) * sizeof *tail);
    for (int32_t i = n - at; i < LOGITS_BLOCK; i++) {
        tail[i] = -INFINITY;
    }
    return tail;
}

#include "simd/baseline.h"
#include "logits_kernels.h"
#if defined(__x86_64__)
#include "simd/avx2.h"
#include "logits_kernels.h"
#include "simd/avx512.h"
#include "logits_kernels.h"
#endif

static const struct kernels *kernels = &kernels_baseline;

int logits_use(int limit)
{
    const int level = simd_level(limit < SIMD_AVX512 ? limit : SIMD_AVX512);
    kernels = &kernels_baseline;
#if defined(__x86_64__)
    f8_prepare();
    kernels = level == SIMD_AVX512 ? &kernels_avx512 : level == SIMD_AVX2 ? &kernels_avx2 : kernels;
#endif
    return level;
}

static inline int32_t blocks_of(int32_t n)
{
    return n / LOGITS_BLOCK + (n % LOGITS_BLOCK != 0);
}

static inline int32_t length_at(int32_t n, int32_t at)
{
    return n - at < LOGITS_BLOCK ? n - at : LOGITS_BLOCK;
}

static float largest(const float *x, int32_t n)
{
    float max = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

float logits_max(const float *x, int32_t n, float *block_max)
{
    kernels->max(x, n, block_max);
    return largest(block_max, blocks_of(n));
}

/* Make the blocks' sums, each relative to its block's maximum, relative to the largest one: *max. */
static double common_scale(int32_t blocks, float scale, const float *block_max, float *block_sum, float *max)
{
    float factor[LOGITS_BLOCK + LOGITS_SLACK];
    double total = 0;
    *max = largest(block_max, blocks);
    for (int32_t at = 0; at < blocks; at += LOGITS_BLOCK) {
        const int32_t length = length_at(blocks, at);
        kernels->weights(block_max + at, length, *max, scale, factor);
        for (int32_t i = 0; i < length; i++) {
            block_sum[at + i] *= factor[i];
            total += block_sum[at + i];
        }
    }
    return total;
}

double logits_sum_exp(const float *x, int32_t n, float scale, float *block_max, float *block_sum, float *max)
{
    kernels->sum_exp(x, n, scale, block_max, block_sum);
    return common_scale(blocks_of(n), scale, block_max, block_sum, max);
}

double logits_bound_sum_exp(const float *x, int32_t n, float scale, float *block_max, float *block_bound, float *max)
{
    kernels->bound_sum_exp(x, n, scale, block_max, block_bound);
    return common_scale(blocks_of(n), scale, block_max, block_bound, max);
}

double logits_weights(const float *x, int32_t n, float max, float scale, float *weight)
{
    return kernels->weights(x, n, max, scale, weight);
}

static double upto(
    float (*block_upto)(const float *, int32_t, float, float), const float *x, int32_t n, float limit, double enough,
    const float *block_max, const float *block_sum, float max)
{
    double weight = 0;
    for (int32_t at = 0; at < n && weight <= enough; at += LOGITS_BLOCK, block_max++, block_sum++) {
        weight += *block_max <= limit ? *block_sum : block_upto(x + at, length_at(n, at), limit, max);
    }
    return weight;
}

double logits_weight_upto(
    const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_sum, float max)
{
    return upto(kernels->weight_upto, x, n, limit, enough, block_max, block_sum, max);
}

double logits_bound_upto(
    const float *x, int32_t n, float limit, double enough, const float *block_max, const float *block_bound, float max)
{
    return upto(kernels->bound_upto, x, n, limit, enough, block_max, block_bound, max);
}

int32_t logits_find(const float *x, int32_t n, const float *block_max, float value)
{
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        if (*block_max++ != value) {
            continue;
        }
        for (int32_t i = at; i < n; i++) {
            if (x[i] == value) {
                return i;
            }
        }
    }
    return -1;
}

int32_t logits_gather(const float *x, int32_t n, const float *block_max, float threshold, float *value, int32_t *index)
{
    return kernels->gather(x, n, block_max, threshold, value, index);
}

int32_t logits_compact(const float *key, int32_t n, float threshold, float *value, int32_t *index)
{
    return kernels->compact(key, n, threshold, value, index);
}

/* Floats as integers in the same order, to halve a range of them in at most 32 steps whatever its ends are. */
static int32_t order_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ (bits >> 31 & INT32_MAX);
}

static float value_of(int32_t order)
{
    float value;
    order ^= order >> 31 & INT32_MAX;
    memcpy(&value, &order, sizeof value);
    return value;
}

static void sort_descending(float *x, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        const float value = x[i];
        int32_t to = i;
        for (; to > 0 && x[to - 1] < value; to--) {
            x[to] = x[to - 1];
        }
        x[to] = value;
    }
}

float logits_select(
    const float *x, int32_t n, double target, bool by_value, float low, float high, float *narrowed)
{
    enum { FEW = 32 };
    int32_t from = order_of(low), to = order_of(high);
    double mass = 0; /* of the entries above those that are left */
    while (n > FEW && from < to) {
        const int32_t middle = from + (int32_t) (((uint32_t) to - (uint32_t) from) / 2);
        const float pivot = value_of(middle);
        const double upper = mass + kernels->above(x, n, pivot, by_value);
        n = kernels->narrow(x, n, pivot, upper >= target, narrowed);
        x = narrowed;
        if (upper >= target) {
            from = middle + 1;
        } else if (n > 0) {
            to = middle;
            mass = upper;
        } else {
            return pivot; /* all of them weigh less than the target */
        }
    }
    if (from >= to) {
        return value_of(to);
    }
    if (x != narrowed) {
        memcpy(narrowed, x, (size_t) n * sizeof *x);
    }
    sort_descending(narrowed, n);
    for (int32_t i = 0; i < n; i++) {
        mass += by_value ? narrowed[i] : 1;
        if (mass >= target) {
            return narrowed[i];
        }
    }
    return narrowed[n - 1];
}

/* The entry that a fraction *u of the mass lies before; *u becomes how far into the entry that is. */
static int32_t walk(const float *mass, int32_t n, double total, double *u)
{
    double rest = *u * total;
    int32_t last = 0;
    for (int32_t i = 0; i < n; i++) {
        if (rest < mass[i]) {
            *u = rest / mass[i];
            return i;
        }
        if (mass[i] > 0) {
            last = i;
        }
        rest -= mass[i];
    }
    *u = 1 - DBL_EPSILON; /* the total was rounded up */
    return last;
}

int32_t logits_draw(
    const float *x, int32_t n, float scale, const double *u, const float *block_bound, double total, float max,
    float *weight)
{
    double place = u[0];
    const int32_t block = walk(block_bound, blocks_of(n), total, &place), at = block * LOGITS_BLOCK;
    const double sum = kernels->weights(x + at, length_at(n, at), max, scale, weight);
    return u[1] * block_bound[block] < sum ? at + walk(weight, length_at(n, at), sum, &place) : -1;
}

void logits_mask(float *x, int32_t n, const uint32_t *allowed)
{
    kernels->mask(x, n / 32, allowed);
    for (int32_t i = n / 32 * 32; i < n; i++) {
        x[i] = allowed[i / 32] >> i % 32 & 1 ? x[i] : -INFINITY;
    }
}

void logits_uniforms(uint64_t seed, uint32_t position, uint32_t draw, uint32_t attempt, double *u)
{
    uint32_t counter[4] = {position, draw, attempt, 0}, key[2] = {(uint32_t) seed, (uint32_t) (seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t) 0xD2511F53 * counter[0], b = (uint64_t) 0xCD9E8D57 * counter[2];
        counter[0] = (uint32_t) (b >> 32) ^ counter[1] ^ key[0];
        counter[1] = (uint32_t) b;
        counter[2] = (uint32_t) (a >> 32) ^ counter[3] ^ key[1];
        counter[3] = (uint32_t) a;
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    u[0] = (double) ((uint64_t) counter[0] << 21 | counter[1] >> 11) * 0x1p-53;
    u[1] = (double) ((uint64_t) counter[2] << 21 | counter[3] >> 11) * 0x1p-53;
}
