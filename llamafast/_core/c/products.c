#include "products.h"

#include "simd/level.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ROWS = 64,                              /* taken in one pass over the weights */
    FEW_ROWS = 32,                              /* the same, where rows are long */
    LONG_ROW = 12288,
    PREFETCH_ROWS = 16,                         /* up to so many, weights come more slowly than they are multiplied */
    MAX_TAKEN = 8,                              /* rows whose sums are in registers */
    SHARES = 4,                                 /* pieces of work a thread, so that all end at about the same time */
    SPINS = 1000,                               /* before a thread that waits lets others run */
    ALIGNMENT = 64,
    N_CUSTOM = 6,                               /* op_params of a custom operation; the others are ours */
};

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define CEIL(a, b) (((a) + (b) - 1) / (b))

/* 256 columns of a row, quantised as one of these. Where weights are stored with an offset, products begin at minus the
 * offset times the sum of the values. */
enum kind { KIND_SUMS, KIND_OFFSETS, KIND_K, N_KINDS };
enum offset { OFFSET_8, OFFSET_16, OFFSET_WIDE, N_OFFSETS };

struct chunk_sums {                             /* ggml's Q8_1 */
    int8_t value[256];
    float scale[8], sum[8];
};

struct chunk_offsets {                          /* Q8_0 */
    int8_t value[256];
    float scale[8];
    int32_t start[N_OFFSETS][8];
};

struct chunk_k {                                /* Q8_K */
    int8_t value[256];
    float scale;
    int16_t sum[16], pair_sum[8];
    int32_t start[16];
};

static const size_t chunk_size[N_KINDS] = {
    [KIND_SUMS] = sizeof(struct chunk_sums), [KIND_OFFSETS] = sizeof(struct chunk_offsets),
    [KIND_K] = sizeof(struct chunk_k),
};

/* How a strip is multiplied: with mins or with an offset, and whether its values need more than 6 bits. */
enum shape { SUMS, OFFSET, WIDE, K_MINS, K_OFFSET };

struct tile_avx2;
struct tile_avx512_vnni;

/* A type of weights. */
struct format {
    enum kind kind;
    enum shape shape;
    enum offset offset;
    int64_t chunk_bytes;                        /* of 256 columns */
    void (*unpack_avx2)(const uint8_t *, size_t, int, struct tile_avx2 *);
    void (*unpack_avx512_vnni)(const uint8_t *, size_t, int, struct tile_avx512_vnni *);
};

/* Some rows of one matrix of weights times some rows of activations. */
struct piece {
    const struct format *format;
    const uint8_t *weights;
    int64_t row_bytes, n_columns;
    int64_t chunk_size;                         /* bytes of 256 columns of activations */
    bool prefetch;
    int n_rows;
    const char *rows[MAX_ROWS];
    float *results[MAX_ROWS];
};

#if defined(__x86_64__)
#include "simd/avx2.h"
#define TAKEN_BY_ONE 4
#define TAKEN_BY_TWO 4
#define ROWS_FOR_TWO (MAX_ROWS + 1)
#include "product_activations.h"
#include "product_unpack.h"
#include "product_kernels.h"
#undef TAKEN_BY_ONE
#undef TAKEN_BY_TWO
#undef ROWS_FOR_TWO
#define TAKEN_BY_ONE 8
#define TAKEN_BY_TWO 6
#define ROWS_FOR_TWO 16
#include "simd/avx512_vnni.h"
#include "product_activations.h"
#include "product_unpack.h"
#include "product_kernels.h"

#define UNPACK(name) .unpack_avx2 = unpack_##name##_avx2, .unpack_avx512_vnni = unpack_##name##_avx512_vnni

static const struct format formats[GGML_TYPE_COUNT] = {
    [GGML_TYPE_Q4_0] = {KIND_OFFSETS, OFFSET, OFFSET_8, 8 * 18, UNPACK(q4_0)},
    [GGML_TYPE_Q4_1] = {KIND_SUMS, SUMS, 0, 8 * 20, UNPACK(q4_1)},
    [GGML_TYPE_Q5_0] = {KIND_OFFSETS, OFFSET, OFFSET_16, 8 * 22, UNPACK(q5_0)},
    [GGML_TYPE_Q5_1] = {KIND_SUMS, SUMS, 0, 8 * 24, UNPACK(q5_1)},
    [GGML_TYPE_Q8_0] = {KIND_OFFSETS, WIDE, OFFSET_WIDE, 8 * 34, UNPACK(q8_0)},
    [GGML_TYPE_IQ4_NL] = {KIND_OFFSETS, WIDE, OFFSET_WIDE, 8 * 18, UNPACK(iq4_nl)},
    [GGML_TYPE_Q4_K] = {KIND_K, K_MINS, 0, 144, UNPACK(q4_k)},
    [GGML_TYPE_Q5_K] = {KIND_K, K_MINS, 0, 176, UNPACK(q5_k)},
    [GGML_TYPE_Q6_K] = {KIND_K, K_OFFSET, 0, 210, UNPACK(q6_k)},
};

static void (*const quantise[][N_KINDS])(const float *, int64_t, void *) = {
    [SIMD_AVX2] = {quantise_32_sums_avx2, quantise_32_avx2, quantise_256_avx2},
    [SIMD_AVX512_VNNI] = {quantise_32_sums_avx512_vnni, quantise_32_avx512_vnni, quantise_256_avx512_vnni},
};
static void (*const compute[])(const struct piece *, int64_t, int64_t) = {
    [SIMD_AVX2] = compute_avx2, [SIMD_AVX512_VNNI] = compute_avx512_vnni,
};
static const int64_t lanes[] = {[SIMD_AVX2] = 8, [SIMD_AVX512_VNNI] = 16};
#else
static const struct format formats[GGML_TYPE_COUNT];
static void (*const quantise[][N_KINDS])(const float *, int64_t, void *) = {{NULL}};
static void (*const compute[])(const struct piece *, int64_t, int64_t) = {NULL};
static const int64_t lanes[] = {0};
#endif

static int level = SIMD_BASELINE;

/* Rows of activations as one kind of chunks, and whose they are. */
struct quantised {
    char *chunks;                               /* (rows, chunks of 256 columns) */
    size_t size;
    const struct ggml_tensor *of;
};

struct products {
    int32_t custom[N_CUSTOM];                   /* op_params of an operation of ours */
    enum ggml_op custom_op;
    struct quantised quantised[N_KINDS];
    bool computed;                              /* something since the last node was taken */
    atomic_int *next_piece;                     /* by node */
    int n_nodes, max_nodes;
    atomic_int n_waiting, generation;           /* of threads that quantise */
};

/* What an operation keeps behind the parameters of a custom one. */
struct mark {
    int32_t node;
    int32_t quantises;
};

int products_use(int limit)
{
    level = simd_level(limit);
    /* AVX-512 without products of bytes gains nothing */
    level = level == SIMD_AVX512 ? SIMD_AVX2 : level;
    return level;
}

struct products *products_new(void)
{
    struct products *self = calloc(1, sizeof *self);
    const struct ggml_init_params size = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *context = self == NULL ? NULL : ggml_init(size);
    if (context == NULL) {
        free(self);
        return NULL;
    }
    struct ggml_tensor *argument = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    const struct ggml_tensor *model = ggml_custom_4d(
        context, GGML_TYPE_F32, 1, 1, 1, 1, &argument, 1, products_compute, GGML_N_TASKS_MAX, self);
    memcpy(self->custom, model->op_params, sizeof self->custom);
    self->custom_op = model->op;
    ggml_free(context);
    return self;
}

void products_free(struct products *self)
{
    if (self != NULL) {
        for (int kind = 0; kind < N_KINDS; kind++) {
            free(self->quantised[kind].chunks);
        }
        free(self->next_piece);
        free(self);
    }
}

void products_begin(struct products *self)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        self->quantised[kind].of = NULL;
    }
    self->n_nodes = 0;
    self->computed = false;
}

static bool fits(const struct ggml_tensor *node)
{
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    const struct format *format = &formats[w->type];
    return format->chunk_bytes != 0 && level >= SIMD_AVX2 && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0
        && w->extra == NULL && w->buffer != NULL && ggml_backend_buffer_is_host(w->buffer)
        && ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS
        && w->ne[2] == 1 && w->ne[3] == 1 && w->ne[1] >= lanes[level] && w->nb[0] == ggml_type_size(w->type)
        && w->nb[1] == ggml_row_size(w->type, w->ne[0])
        && x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[3] == 1
        && (x->ne[2] == 1 || ggml_is_contiguous(x))
        && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

/* Room for one more node and for its rows. */
static bool reserve(struct products *self, struct quantised *quantised, size_t size)
{
    if (self->n_nodes == self->max_nodes) {
        const int more = MAX(2 * self->max_nodes, 256);
        atomic_int *next_piece = realloc(self->next_piece, (size_t) more * sizeof *next_piece);
        if (next_piece == NULL) {
            return false;
        }
        self->next_piece = next_piece;
        self->max_nodes = more;
    }
    if (quantised->size < size) {
        char *chunks = aligned_alloc(ALIGNMENT, CEIL(size, ALIGNMENT) * ALIGNMENT);
        if (chunks == NULL) {
            return false;
        }
        free(quantised->chunks);
        quantised->chunks = chunks;
        quantised->size = size;
    }
    return true;
}

bool products_take(struct products *self, struct ggml_tensor *node)
{
    const bool ours = node->op == self->custom_op && memcmp(node->op_params, self->custom, sizeof self->custom) == 0;
    if (self->computed) {
        products_begin(self);
    }
    if (!ours && (node->op != GGML_OP_MUL_MAT || node->op_params[1] != 0 || !fits(node))) {
        return false;
    }
    const struct ggml_tensor *x = node->src[1];
    struct quantised *quantised = &self->quantised[formats[node->src[0]->type].kind];
    const size_t row_size = CEIL((size_t) x->ne[0], 256) * chunk_size[formats[node->src[0]->type].kind];
    if (!reserve(self, quantised, (size_t) ggml_nrows(x) * row_size)) {
        return false;
    }
    const struct mark mark = {.node = self->n_nodes++, .quantises = quantised->of != x};
    atomic_store_explicit(&self->next_piece[mark.node], 0, memory_order_relaxed);
    quantised->of = x;
    memcpy(node->op_params, self->custom, sizeof self->custom);
    memcpy(node->op_params + N_CUSTOM, &mark, sizeof mark);
    node->op = self->custom_op;
    return true;
}

/* All threads wait until all have come. */
static void wait_for_all(struct products *self, int n_threads)
{
    const int generation = atomic_load_explicit(&self->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&self->n_waiting, 1, memory_order_acq_rel) == n_threads - 1) {
        atomic_store_explicit(&self->n_waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&self->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&self->generation, memory_order_acquire) == generation; spins++) {
        if (spins >= SPINS) {
            sched_yield();
        }
    }
}

static const float *row_of(const struct ggml_tensor *x, int64_t row)
{
    return (const float *) ((const char *) x->data + row % x->ne[1] * x->nb[1] + row / x->ne[1] * x->nb[2]);
}

/* What thread `ith` quantises: rows, or where threads are more, parts of them. */
static void quantise_rows(struct products *self, const struct ggml_tensor *x, enum kind kind, int ith, int nth)
{
    const int64_t n_rows = ggml_nrows(x), n_chunks = CEIL(x->ne[0], 256);
    const int64_t n_parts = MIN(n_chunks, CEIL(nth, n_rows));
    for (int64_t i = ith; i < n_rows * n_parts; i += nth) {
        const int64_t row = i / n_parts, part = i % n_parts;
        const int64_t first = n_chunks * part / n_parts, stop = n_chunks * (part + 1) / n_parts;
        char *to = self->quantised[kind].chunks + (size_t) (row * n_chunks + first) * chunk_size[kind];
        quantise[level][kind](row_of(x, row) + 256 * first, MIN(256 * stop, x->ne[0]) - 256 * first, to);
    }
}

void products_compute(struct ggml_tensor *node, int ith, int nth, void *data)
{
    struct products *self = data;
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    const struct format *format = &formats[w->type];
    const int64_t n_rows = ggml_nrows(x), n_chunks = CEIL(x->ne[0], 256), width = lanes[level];
    const int64_t most = x->ne[0] > LONG_ROW ? FEW_ROWS : MAX_ROWS;
    struct mark mark;
    memcpy(&mark, node->op_params + N_CUSTOM, sizeof mark);
    if (mark.quantises) {
        quantise_rows(self, x, format->kind, ith, nth);
        if (nth > 1) {
            wait_for_all(self, nth);
        }
    }
    if (ith == 0) {
        self->computed = true;
    }
    struct piece piece = {
        .format = format, .weights = w->data, .row_bytes = (int64_t) w->nb[1], .n_columns = w->ne[0],
        .chunk_size = (int64_t) chunk_size[format->kind], .prefetch = n_rows <= PREFETCH_ROWS,
    };
    /* strips in pairs; the last piece has what is left */
    const int64_t n_pairs = MAX(w->ne[1] / (2 * width), 1);
    const int n_pieces = (int) MIN(n_pairs, nth == 1 ? 1 : SHARES * nth);
    for (int i; (i = atomic_fetch_add_explicit(&self->next_piece[mark.node], 1, memory_order_relaxed)) < n_pieces;) {
        const int64_t first = n_pairs * i / n_pieces * 2 * width;
        const int64_t stop = i + 1 == n_pieces ? w->ne[1] : n_pairs * (i + 1) / n_pieces * 2 * width;
        for (int64_t row = 0; row < n_rows; row += most) {
            piece.n_rows = (int) MIN(n_rows - row, most);
            for (int k = 0; k < piece.n_rows; k++) {
                piece.rows[k] = self->quantised[format->kind].chunks + (row + k) * n_chunks * piece.chunk_size;
                piece.results[k] = (float *) node->data + (row + k) * w->ne[1];
            }
            compute[level](&piece, first, stop);
        }
    }
}
