#include "attention.h"

#include "simd/level.h"

#include <ggml.h>
#include <math.h>
#include <string.h>

enum {
    BLOCK = 64,                                 /* cells taken at a time */
    MAX_QUERIES = 64,                           /* rows times heads taken together */
    MAX_MIXED = 1 << 13,                        /* floats of their results */
    MAX_CELLS = 1 << 17,
    MAX_Q8_0 = 256,                             /* head size of what is dequantised */
    WORDS = MAX_CELLS / 64,
    LAST_PARAM = GGML_MAX_OP_PARAMS / sizeof(int32_t) - 1,
    SHARES = 4,                                 /* pieces of work a thread, so that all end at about the same time */
};

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define CEIL(a, b) (((a) + (b) - 1) / (b))

static const ggml_fp16_t HIDDEN = 0xFC00;       /* -inf */

/* Cells that some query sees. */
struct block {
    int n;
    bool biased;                                /* scores are not the products alone */
    float scale;                                /* of products, to exponents of 2 */
    int64_t key_size, value_size;
    const ggml_fp16_t *key[BLOCK], *value[BLOCK];
    float bias[MAX_QUERIES][BLOCK];             /* by row: -inf where the cell is hidden */
    ggml_fp16_t dequantised[2][BLOCK][MAX_Q8_0]; /* keys and values of a Q8_0 cache */
};

/* Rows times heads that share a head of keys, by row. */
struct queries {
    int n, n_heads;
    const float *query[MAX_QUERIES];
    float max[MAX_QUERIES], total[MAX_QUERIES];
    float mixed[MAX_MIXED];                     /* (n, value_size) */
};

#include "simd/baseline.h"
#define TILE 2
#define WIDTH 4
#include "attention_kernels.h"
#if defined(__x86_64__)
#include "simd/avx2.h"
#include "attention_kernels.h"
#undef TILE
#define TILE 4
#include "simd/avx512.h"
#include "attention_kernels.h"
#endif

/* A bit for each of n cells that a row of the mask does not hide, in words of 64; whether the mask says yes or no only. */
static bool see_baseline(const ggml_fp16_t *mask, int64_t n, uint64_t *seen)
{
    bool plain = true;
    for (int64_t at = 0; at < n; at += 64) {
        uint64_t word = 0;
        for (int64_t i = at; i < n && i < at + 64; i++) {
            word |= (uint64_t) (mask[i] != HIDDEN) << (i - at);
            plain &= mask[i] == HIDDEN || mask[i] == 0;
        }
        seen[at / 64] = word;
    }
    return plain;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static bool see_avx2(const ggml_fp16_t *mask, int64_t n, uint64_t *seen)
{
    const __m256i hidden = _mm256_set1_epi16((short) HIDDEN), zero = _mm256_setzero_si256();
    __m256i plain = _mm256_set1_epi16(-1);
    int64_t at = 0;
    for (; at + 64 <= n; at += 64) {
        uint64_t word = 0;
        for (int half = 0; half < 2; half++) {
            const __m256i x = _mm256_loadu_si256((const __m256i *) (mask + at + 32 * half));
            const __m256i y = _mm256_loadu_si256((const __m256i *) (mask + at + 32 * half + 16));
            const __m256i a = _mm256_cmpeq_epi16(x, hidden), b = _mm256_cmpeq_epi16(y, hidden);
            /* packing takes the lanes of 128 bits in turn */
            const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
            word |= (uint64_t) (uint32_t) ~_mm256_movemask_epi8(both) << (32 * half);
            plain = _mm256_and_si256(plain, _mm256_or_si256(a, _mm256_cmpeq_epi16(x, zero)));
            plain = _mm256_and_si256(plain, _mm256_or_si256(b, _mm256_cmpeq_epi16(y, zero)));
        }
        seen[at / 64] = word;
    }
    return (at == n || see_baseline(mask + at, n - at, seen + at / 64)) && _mm256_movemask_epi8(plain) == -1;
}
#endif

/* Blocks of 32 bytes behind the scale that they have in common. */
#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) static void dequantise_q8_0_avx2(const char *block, int64_t n, ggml_fp16_t *to)
{
    for (int64_t at = 0; at < n; at += 32, block += 34) {
        uint16_t half;
        memcpy(&half, block, sizeof half);
        const __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
        for (int i = 0; i < 32; i += 8) {
            const __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) (block + 2 + i)));
            const __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(x), scale);
            _mm_storeu_si128((__m128i *) (to + at + i), _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
        }
    }
}
#endif

static bool (*see)(const ggml_fp16_t *, int64_t, uint64_t *) = see_baseline;
static void (*attend)(const struct block *, struct queries *) = attend_baseline;
/* NULL: caches of Q8_0 are left to ggml. */
static void (*dequantise_q8_0)(const char *, int64_t, ggml_fp16_t *) = NULL;

/* A custom operation of ours; the last of its parameters is not used, and becomes the scale. */
static enum ggml_op custom_op = GGML_OP_NONE;
static int32_t custom_params[LAST_PARAM + 1];

int attention_use(int limit)
{
    const int level = simd_level(MIN(limit, SIMD_AVX512));
    see = see_baseline;
    attend = attend_baseline;
    dequantise_q8_0 = NULL;
#if defined(__x86_64__)
    see = level >= SIMD_AVX2 ? see_avx2 : see;
    attend = level == SIMD_AVX512 ? attend_avx512 : level == SIMD_AVX2 ? attend_avx2 : attend;
    dequantise_q8_0 = level >= SIMD_AVX2 ? dequantise_q8_0_avx2 : NULL;
#endif
    const struct ggml_init_params size = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *context = ggml_init(size);
    struct ggml_tensor *argument = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    const struct ggml_tensor *model = ggml_custom_4d(
        context, GGML_TYPE_F32, 1, 1, 1, 1, &argument, 1, attention_compute, GGML_N_TASKS_MAX, NULL);
    custom_op = model->op_params[LAST_PARAM] == 0 ? model->op : GGML_OP_NONE;
    memcpy(custom_params, model->op_params, sizeof custom_params);
    ggml_free(context);
    return level;
}

static bool is_dense(const struct ggml_tensor *tensor, enum ggml_type type)
{
    return tensor->type == type && tensor->nb[0] == ggml_type_size(type) && tensor->ne[0] % 16 == 0;
}

/* Keys or values. */
static bool is_cache(const struct ggml_tensor *tensor)
{
    return is_dense(tensor, GGML_TYPE_F16)
        || (dequantise_q8_0 != NULL && is_dense(tensor, GGML_TYPE_Q8_0) && tensor->ne[0] <= MAX_Q8_0);
}

bool attention_take(struct ggml_tensor *node)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    float params[3];
    memcpy(params, node->op_params, sizeof params);
    const float scale = params[0], max_bias = params[1], logit_softcap = params[2];
    if (custom_op == GGML_OP_NONE || node->op != GGML_OP_FLASH_ATTN_EXT || mask == NULL || max_bias != 0
        || logit_softcap != 0 || !is_dense(q, GGML_TYPE_F32) || !is_cache(k) || !is_cache(v) || v->ne[0] > MAX_MIXED
        || k->ne[1] > MAX_CELLS || k->ne[2] != v->ne[2]
        || k->ne[3] != q->ne[3] || v->ne[3] != q->ne[3] || mask->type != GGML_TYPE_F16 || mask->ne[0] < k->ne[1]
        || mask->ne[1] < q->ne[1] || mask->ne[2] != 1) {
        return false;
    }
    memcpy(node->op_params, custom_params, sizeof custom_params);
    memcpy(node->op_params + LAST_PARAM, &scale, sizeof scale);
    node->op = custom_op;
    return true;
}

/* Rows of one stream that see nearly the same cells, and are taken together. */
struct rows {
    int64_t stream, first, n;
    bool plain;                                 /* the mask says yes or no, no more */
    uint64_t seen[WORDS];                       /* the cells that some of them see */
};

static const ggml_fp16_t *mask_of(const struct ggml_tensor *node, int64_t stream, int64_t row)
{
    const struct ggml_tensor *mask = node->src[3];
    return (const ggml_fp16_t *) ((const char *) mask->data + row * mask->nb[1] + stream % mask->ne[3] * mask->nb[3]);
}

/* A cell's key or value, in the cache itself or dequantised. */
static const ggml_fp16_t *halves_of(const struct ggml_tensor *tensor, const char *data, ggml_fp16_t *dequantised)
{
    if (tensor->type == GGML_TYPE_F16) {
        return (const ggml_fp16_t *) data;
    }
    dequantise_q8_0(data, tensor->ne[0], dequantised);
    return dequantised;
}

/* The next cells that are seen, and what the mask adds to their scores; false: there are no more. */
static bool next_block(
    const struct ggml_tensor *node, const struct rows *rows, int64_t kv_head, int64_t *word, uint64_t *left,
    struct block *block)
{
    const struct ggml_tensor *k = node->src[1], *v = node->src[2];
    const char *keys = (const char *) k->data + kv_head * k->nb[2] + rows->stream * k->nb[3];
    const char *values = (const char *) v->data + kv_head * v->nb[2] + rows->stream * v->nb[3];
    int64_t cell[BLOCK];
    int n = 0;
    while (n < BLOCK) {
        while (*left == 0 && ++*word < CEIL(k->ne[1], 64)) {
            *left = rows->seen[*word];
        }
        if (*left == 0) {
            break;
        }
        cell[n++] = *word * 64 + __builtin_ctzll(*left);
        *left &= *left - 1;
    }
    for (int c = 0; c < n; c++) {
        block->key[c] = halves_of(k, keys + cell[c] * k->nb[1], block->dequantised[0][c]);
        block->value[c] = halves_of(v, values + cell[c] * v->nb[1], block->dequantised[1][c]);
    }
    for (int c = n; c % 4 != 0; c++) {
        block->key[c] = block->key[n - 1];
    }
    for (int64_t row = 0; row < rows->n && block->biased; row++) {
        const ggml_fp16_t *mask = mask_of(node, rows->stream, rows->first + row);
        for (int c = 0; c < BLOCK; c++) {
            const ggml_fp16_t half = c < n ? mask[cell[c]] : HIDDEN;
            block->bias[row][c] = half == 0 ? 0 : half == HIDDEN ? -INFINITY : ggml_fp16_to_fp32(half) * LOG2_E;
        }
    }
    block->n = n;
    return n > 0;
}

/* What a thread works with: 160 KB, too much for the stack of some. */
struct scratch {
    struct rows rows;
    uint64_t seen[2][WORDS];                    /* by the last two rows */
    struct block block;
    struct queries queries;
};

static _Thread_local struct scratch own_scratch;

/* Some heads, which share a head of keys, of some rows. */
static void attend_rows(
    struct ggml_tensor *node, struct scratch *scratch, int64_t kv_head, int64_t first_head, int64_t n_heads)
{
    const struct ggml_tensor *q = node->src[0], *sinks = node->src[4];
    const int64_t value_size = node->src[2]->ne[0];
    const struct rows *rows = &scratch->rows;
    struct block *block = &scratch->block;
    struct queries *queries = &scratch->queries;
    int64_t word = 0;
    uint64_t left = rows->seen[0];
    float scale;
    memcpy(&scale, node->op_params + LAST_PARAM, sizeof scale);
    block->biased = rows->n > 1 || !rows->plain;
    block->scale = scale * LOG2_E;
    block->key_size = node->src[1]->ne[0];
    block->value_size = value_size;
    queries->n = (int) (rows->n * n_heads);
    queries->n_heads = (int) n_heads;
    for (int i = 0; i < queries->n; i++) {
        queries->query[i] = (const float *) ((const char *) q->data + (rows->first + i / n_heads) * q->nb[1]
            + (first_head + i % n_heads) * q->nb[2] + rows->stream * q->nb[3]);
        queries->max[i] = -INFINITY;
        queries->total[i] = 0;
    }
    memset(queries->mixed, 0, (size_t) (queries->n * value_size) * sizeof(float));
    while (next_block(node, rows, kv_head, &word, &left, block)) {
        attend(block, queries);
    }
    for (int i = 0; i < queries->n; i++) {
        const int64_t head = first_head + i % n_heads;
        float *to = (float *) ((char *) node->data + head * node->nb[1] + (rows->first + i / n_heads) * node->nb[2]
            + rows->stream * node->nb[3]);
        float total = queries->total[i], weight = 1;
        if (sinks != NULL) {
            /* a score whose value is nothing */
            const float sink = ((const float *) sinks->data)[head] * LOG2_E, max = fmaxf(queries->max[i], sink);
            weight = exp2f(queries->max[i] - max);
            total = total * weight + exp2f(sink - max);
        }
        weight = total == 0 ? 0 : weight / total;
        for (int64_t d = 0; d < value_size; d++) {
            to[d] = queries->mixed[i * value_size + d] * weight;
        }
    }
}

/* Take in the next row if it sees nearly the same cells. Of the next token of a sequence that is what the one before it
 * sees and its own cell, without the oldest one where attention has a window. */
static bool join(struct rows *rows, const uint64_t *before, const uint64_t *row, bool plain, int64_t n_words)
{
    int n_different = 0;
    for (int64_t w = 0; w < n_words; w++) {
        n_different += __builtin_popcountll(before[w] ^ row[w]);
    }
    if (n_different > 2) {
        return false;
    }
    for (int64_t w = 0; w < n_words; w++) {
        rows->seen[w] |= row[w];
    }
    rows->plain &= plain;
    rows->n++;
    return true;
}

/* How an operation is divided into pieces of work: a chunk of a stream's rows and a span of slices each. A slice is of
 * heads that share a head of keys. One thread has all heads of its rows in one span, as what a row sees is looked up once
 * a piece. */
struct division {
    int64_t chunk, n_chunks;                    /* rows, of all streams */
    int64_t slice, n_slices;                    /* heads; the last slice of a head of keys may have fewer */
    int64_t n_spans;
};

static struct division divide(const struct ggml_tensor *node, int n_threads)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const int64_t wanted = n_threads == 1 ? 1 : SHARES * n_threads, group = q->ne[2] / k->ne[2];
    const int64_t most = MIN(MAX_QUERIES, MAX_MIXED / v->ne[0]);
    struct division d;
    d.slice = MIN(group, most);
    d.chunk = MAX(1, MIN(q->ne[1] * q->ne[3] / wanted, most / d.slice));
    d.n_chunks = CEIL(q->ne[1], d.chunk) * q->ne[3];
    while (d.slice > 1 && d.n_chunks * k->ne[2] * CEIL(group, d.slice) < wanted) {
        d.slice = CEIL(d.slice, 2);
    }
    d.n_slices = k->ne[2] * CEIL(group, d.slice);
    d.n_spans = MIN(d.n_slices, CEIL(wanted, d.n_chunks));
    return d;
}

static void attend_span(struct ggml_tensor *node, struct scratch *scratch, const struct division *d, int64_t span)
{
    const int64_t group = node->src[0]->ne[2] / node->src[1]->ne[2], per_group = CEIL(group, d->slice);
    for (int64_t slice = d->n_slices * span / d->n_spans; slice < d->n_slices * (span + 1) / d->n_spans; slice++) {
        const int64_t kv_head = slice / per_group, first = slice % per_group * d->slice;
        attend_rows(node, scratch, kv_head, kv_head * group + first, MIN(d->slice, group - first));
    }
}

void attention_compute(struct ggml_tensor *node, int ith, int nth, void *data)
{
    const int64_t n_rows = node->src[0]->ne[1], n_cells = node->src[1]->ne[1], n_words = CEIL(n_cells, 64);
    const struct division d = divide(node, nth);
    struct scratch *const scratch = &own_scratch;
    struct rows *const rows = &scratch->rows;
    (void) data;
    for (int64_t piece = ith; piece < d.n_chunks * d.n_spans; piece += nth) {
        const int64_t chunk = piece / d.n_spans, per_stream = d.n_chunks / node->src[0]->ne[3];
        const int64_t first = chunk % per_stream * d.chunk, stop = MIN(first + d.chunk, n_rows);
        rows->stream = chunk / per_stream;
        rows->n = 0;
        for (int64_t row = first; row < stop; row++) {
            uint64_t *now = scratch->seen[row & 1];
            const bool plain = see(mask_of(node, rows->stream, row), n_cells, now);
            if (rows->n > 0 && join(rows, scratch->seen[~row & 1], now, plain, n_words)) {
                continue;
            }
            if (rows->n > 0) {
                attend_span(node, scratch, &d, piece % d.n_spans);
            }
            rows->first = row;
            rows->n = 1;
            rows->plain = plain;
            memcpy(rows->seen, now, (size_t) n_words * sizeof *now);
        }
        attend_span(node, scratch, &d, piece % d.n_spans);
    }
}
