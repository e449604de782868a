/* The types of weights that products.c multiplies, and for each instruction set the kernels that do. */
#include "simd/level.h"

#include <ggml.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    MAX_ROWS = 64,                              /* taken in one pass over the weights */
    MAX_FEW = 4,                                /* rows that weights are multiplied with as they are unpacked */
    MAX_TAKEN = 8,                              /* rows whose sums are in registers */
    LINE = 64,                                  /* bytes that come from memory together */
    CACHED_WEIGHTS = 1 << 18,                   /* bytes of floats that rows are multiplied with in turn */
    F32_AHEAD = 8192,                           /* bytes before which those of F32 are fetched */
};

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define CEIL(a, b) (((a) + (b) - 1) / (b))

/* 256 columns of a row, quantised as one of these. Where weights are stored with an offset, products begin at minus the
 * offset times the sum of the values. */
enum kind { KIND_SUMS, KIND_OFFSETS, KIND_K, KIND_BRAINS, N_KINDS, KIND_FLOATS = N_KINDS };
enum offset { OFFSET_8, OFFSET_16, OFFSET_WIDE, N_OFFSETS };

struct chunk_sums {                             /* ggml's Q8_1 */
    int8_t value[256];
    float scale[8], sum[8];
};

struct chunk_offsets {                          /* Q8_0 */
    int8_t value[256];
    float scale[8];
    int32_t start[N_OFFSETS][8], start_half[16];
};

struct chunk_k {                                /* Q8_K */
    int8_t value[256];
    float scale;
    int16_t sum[16], pair_sum[8];
    int32_t start[16], start_wide[8], start_wide_all;
};

static const size_t chunk_size[N_KINDS] = {
    [KIND_SUMS] = sizeof(struct chunk_sums), [KIND_OFFSETS] = sizeof(struct chunk_offsets),
    [KIND_K] = sizeof(struct chunk_k), [KIND_BRAINS] = 256 * sizeof(uint16_t),
};

/* How a strip is multiplied: with mins or with an offset, and whether its values need more than 6 bits. Of HALVES there
 * are two scales for each one of activations. Of the last two a tile has the values times their blocks' scales, which are
 * whole numbers. */
enum shape { SUMS, OFFSET, WIDE, HALVES, K_MINS, K_OFFSET, K_WIDE, SCALED_MINS, SCALED_WIDE };

struct tile_avx2;
struct tile_avx512_vnni;

struct piece;

/* A type of weights. */
struct format {
    enum kind kind;
    enum shape shape;
    enum offset offset;
    int64_t chunk_bytes;                        /* of 256 columns */
    void (*compute_avx2)(const struct piece *, int64_t, int64_t);
    void (*compute_avx512_vnni)(const struct piece *, int64_t, int64_t);
    int few;                                    /* rows that weights are multiplied with as they are unpacked */
    void (*few_rows_avx2)(const struct piece *, int64_t);
    void (*few_rows_avx512_vnni)(const struct piece *, int64_t);
    void (*unpack_avx2)(const uint8_t *, size_t, int, struct tile_avx2 *);
    void (*unpack_avx512_vnni)(const uint8_t *, size_t, int, struct tile_avx512_vnni *);
};

/* Some rows of one matrix of weights times some rows of activations. */
struct piece {
    const struct format *format;
    const uint8_t *weights;
    int64_t row_bytes, n_columns;
    int64_t chunk_size;                         /* bytes of 256 columns of activations */
    int n_rows;
    const char *rows[MAX_ROWS];
    float *results[MAX_ROWS];
};

/* Where the block of rows of floats ends that begins at `begin`; no block of fewer than four rows is left. */
static inline int64_t end_of_block(const struct piece *piece, int64_t begin, int64_t stop)
{
    const int64_t block = MAX(CACHED_WEIGHTS / piece->row_bytes / 4 * 4, 4);
    return begin + block + 4 > stop ? stop : begin + block;
}

/* What is fetched from memory beside the work, in parts of so many bytes: all at once would keep everything else that is
 * on its way, from nearer by, waiting. No line is asked for twice, which costs as much as the first time. 0: nothing is.
 * Weights that are near already lose nothing by it. */
struct ahead {
    const uint8_t *from;
    int64_t part;
};

#define FETCH(ahead, first, stop, locality) \
    for (uintptr_t line = CEIL((uintptr_t) ahead.from + (first) * (uintptr_t) ahead.part, LINE) * LINE; \
         line < (uintptr_t) ahead.from + (stop) * (uintptr_t) ahead.part; line += LINE) { \
        __builtin_prefetch((const void *) line, 0, locality); \
    }

/* Into the second cache; into the first, where nothing else needs that. */
static inline void fetch(struct ahead ahead, int first, int stop)
{
    FETCH(ahead, first, stop, 2)
}

static inline void fetch_near(struct ahead ahead, int first, int stop)
{
    FETCH(ahead, first, stop, 3)
}

#undef FETCH

/* Lines of which it is known how many: `size` is a constant. */
static inline __attribute__((always_inline)) void fetch_lines(const uint8_t *from, int size)
{
#pragma GCC unroll 16
    for (int line = 0; line < size; line += LINE) {
        __builtin_prefetch(from + line, 0, 3);
    }
}

#if defined(__x86_64__)
#include "simd/avx2.h"
#define TAKEN_BY_ONE 4
#define TAKEN_BY_TWO 3
#define ROWS_FOR_TWO 24
#define FLOAT_ROWS 3
#define BURST_ROWS 2
#define UNFETCHED_ROWS FLOAT_ROWS
#include "product_activations.h"
#include "product_unpack.h"
#include "product_unpack_k.h"
#include "product_terms.h"
#include "product_few_rows.h"
#include "product_kernels.h"
#include "product_floats.h"
#undef TAKEN_BY_ONE
#undef TAKEN_BY_TWO
#undef ROWS_FOR_TWO
#undef FLOAT_ROWS
#undef BURST_ROWS
#undef UNFETCHED_ROWS
#define TAKEN_BY_ONE 8
#define TAKEN_BY_TWO 6
#define ROWS_FOR_TWO 16
#define FLOAT_ROWS 6
#define BURST_ROWS FLOAT_ROWS
#define UNFETCHED_ROWS 1
#include "simd/avx512_vnni.h"
#include "product_activations.h"
#include "product_unpack.h"
#include "product_unpack_k.h"
#include "product_terms.h"
#include "product_few_rows.h"
#include "product_kernels.h"
#include "product_floats.h"
#include "product_brains.h"

#define STRIPS(name) \
    .unpack_avx2 = unpack_##name##_avx2, .unpack_avx512_vnni = unpack_##name##_avx512_vnni, \
    .compute_avx2 = compute_strips_avx2, .compute_avx512_vnni = compute_strips_avx512_vnni
#define FEW(name, n) .few = n, .few_rows_avx2 = few_##name##_avx2, .few_rows_avx512_vnni = few_##name##_avx512_vnni
#define FLOATS(name) .compute_avx2 = compute_##name##_avx2, .compute_avx512_vnni = compute_##name##_avx512_vnni

static const struct format formats[GGML_TYPE_COUNT] = {
    [GGML_TYPE_F32] = {KIND_FLOATS, FLOATS(f32)},
    [GGML_TYPE_F16] = {KIND_FLOATS, FLOATS(f16)},
    [GGML_TYPE_BF16] = {KIND_FLOATS, FLOATS(bf16)},
    [GGML_TYPE_Q4_0] = {KIND_OFFSETS, OFFSET, OFFSET_8, 8 * 18, STRIPS(q4_0), FEW(q4_0, 4)},
    [GGML_TYPE_Q4_1] = {KIND_SUMS, SUMS, 0, 8 * 20, STRIPS(q4_1), FEW(q4_1, 4)},
    [GGML_TYPE_Q5_0] = {KIND_OFFSETS, OFFSET, OFFSET_16, 8 * 22, STRIPS(q5_0), FEW(q5_0, 4)},
    [GGML_TYPE_Q5_1] = {KIND_SUMS, SUMS, 0, 8 * 24, STRIPS(q5_1), FEW(q5_1, 4)},
    [GGML_TYPE_Q8_0] = {KIND_OFFSETS, WIDE, OFFSET_WIDE, 8 * 34, STRIPS(q8_0), FEW(q8_0, 4)},
    [GGML_TYPE_IQ4_NL] = {KIND_OFFSETS, WIDE, OFFSET_WIDE, 8 * 18, STRIPS(iq4_nl), FEW(iq4_nl, 4)},
    [GGML_TYPE_MXFP4] = {KIND_OFFSETS, OFFSET, OFFSET_16, 8 * 17, STRIPS(mxfp4), FEW(mxfp4, 4)},
    [GGML_TYPE_NVFP4] = {KIND_OFFSETS, HALVES, 0, 4 * 36, STRIPS(nvfp4), FEW(nvfp4, 4)},
    [GGML_TYPE_Q2_K] = {KIND_K, SCALED_MINS, 0, 84, STRIPS(q2_k), FEW(q2_k, 4)},
    [GGML_TYPE_Q3_K] = {KIND_K, SCALED_WIDE, 0, 110, STRIPS(q3_k), FEW(q3_k, 4)},
    [GGML_TYPE_Q4_K] = {KIND_K, K_MINS, 0, 144, STRIPS(q4_k), FEW(q4_k, 2)},
    [GGML_TYPE_Q5_K] = {KIND_K, K_MINS, 0, 176, STRIPS(q5_k), FEW(q5_k, 2)},
    [GGML_TYPE_Q6_K] = {KIND_K, K_OFFSET, 0, 210, STRIPS(q6_k), FEW(q6_k, 2)},
    [GGML_TYPE_IQ4_XS] = {KIND_K, K_WIDE, 0, 136, STRIPS(iq4_xs), FEW(iq4_xs, 4)},
};

static const struct format brains = {KIND_BRAINS, .compute_avx512_vnni = compute_brains};

static void (*const quantise[][N_KINDS])(const float *, int64_t, void *) = {
    [SIMD_AVX2] = {quantise_32_sums_avx2, quantise_32_avx2, quantise_256_avx2},
    [SIMD_AVX512_VNNI] = {quantise_32_sums_avx512_vnni, quantise_32_avx512_vnni, quantise_256_avx512_vnni},
    [SIMD_AVX512_BF16] = {
        quantise_32_sums_avx512_vnni, quantise_32_avx512_vnni, quantise_256_avx512_vnni, quantise_brains},
};
static const int64_t lanes[] = {[SIMD_AVX2] = 8, [SIMD_AVX512_VNNI] = 16, [SIMD_AVX512_BF16] = 16};
#else
static const struct format formats[GGML_TYPE_COUNT], brains;
static void (*const quantise[][N_KINDS])(const float *, int64_t, void *) = {{NULL}};
static const int64_t lanes[] = {0};
#endif
