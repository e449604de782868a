#include "products.h"

#include "product_formats.h"

#include <ggml-backend.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum {
    FEW_ROWS = 32,                              /* taken in one pass over the weights, where rows are long */
    LONG_ROW = 12288,
    LEAST_PAIRS = 2,                            /* of strips, that a thread takes at a time */
    SPINS = 1000,                               /* before a thread that waits lets others run */
    ALIGNMENT = 64,
    N_CUSTOM = 6,                               /* op_params of a custom operation; the others are ours */
};

static int level = SIMD_BASELINE;

/* Rows of activations as one kind of chunks, and whose they are. */
struct quantised {
    char *chunks;                               /* (rows, chunks of 256 columns) */
    size_t size;
    const struct ggml_tensor *of;
};

/* Which rows each expert has, by ggml's ids (slots, tokens). */
struct groups {
    int32_t *pair;                              /* slot + slots * token, by expert */
    int32_t *first;                             /* of each expert's, and the number of all */
    int32_t *busy;                              /* the experts that have any */
    int n_busy;
    int64_t max_pairs, max_experts;
    const struct ggml_tensor *of;
};

struct products {
    int32_t custom[N_CUSTOM];                   /* op_params of an operation of ours */
    enum ggml_op custom_op;
    struct quantised quantised[N_KINDS];
    struct groups groups;
    bool computed;                              /* something since the last node was taken */
    atomic_llong *taken;                        /* pairs of strips, by node */
    int n_nodes, max_nodes;
    atomic_int n_waiting, generation;           /* of threads that prepare */
};

/* What an operation keeps behind the parameters of a custom one. */
struct mark {
    int32_t node;
    bool quantises, groups;                     /* before it multiplies */
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
        free(self->groups.pair);
        free(self->groups.first);
        free(self->groups.busy);
        free(self->taken);
        free(self);
    }
}

void products_begin(struct products *self)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        self->quantised[kind].of = NULL;
    }
    self->groups.of = NULL;
    self->n_nodes = 0;
    self->computed = false;
}

/* Where the processor multiplies BF16, activations become it too. */
static const struct format *format_of(const struct ggml_tensor *w)
{
    return level >= SIMD_AVX512_BF16 && w->type == GGML_TYPE_BF16 && w->ne[0] % 32 == 0 ? &brains : &formats[w->type];
}

static bool fits(const struct ggml_tensor *node)
{
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    const struct format *format = format_of(w);
    const bool of_experts = node->op == GGML_OP_MUL_MAT_ID;
    return (of_experts || (node->op == GGML_OP_MUL_MAT && node->op_params[1] == 0 && w->ne[2] == 1))
        && format->compute_avx512_vnni != NULL && level >= SIMD_AVX2 && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0
        && w->extra == NULL && w->buffer != NULL && ggml_backend_buffer_is_host(w->buffer)
        && ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS
        && w->ne[3] == 1 && w->ne[1] >= lanes[level] && w->nb[0] == ggml_type_size(w->type)
        && w->nb[1] == ggml_row_size(w->type, w->ne[0])
        && (format->kind != KIND_FLOATS || w->ne[0] % 16 == 0)
        && x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[3] == 1
        && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node) && !ggml_is_empty(node);
}

/* Room for `size` of what is not needed any more; NULL: no memory. */
static void *room(void *old, size_t size)
{
    free(old);
    return aligned_alloc(ALIGNMENT, CEIL(size, ALIGNMENT) * ALIGNMENT);
}

/* Room for one more node, for its rows and for whose they are. */
static bool reserve(struct products *self, const struct ggml_tensor *node)
{
    const struct ggml_tensor *w = node->src[0], *x = node->src[1], *ids = node->src[2];
    const enum kind kind = format_of(w)->kind;
    struct groups *groups = &self->groups;
    if (self->n_nodes == self->max_nodes) {
        const int more = MAX(2 * self->max_nodes, 256);
        atomic_llong *taken = realloc(self->taken, (size_t) more * sizeof *taken);
        if (taken == NULL) {
            return false;
        }
        self->taken = taken;
        self->max_nodes = more;
    }
    if (kind != KIND_FLOATS) {
        struct quantised *quantised = &self->quantised[kind];
        const size_t size = (size_t) (ggml_nrows(x) * CEIL(x->ne[0], 256)) * chunk_size[kind];
        if (quantised->size < size) {
            quantised->chunks = room(quantised->chunks, size);
            quantised->size = quantised->chunks == NULL ? 0 : size;
        }
        if (quantised->chunks == NULL) {
            return false;
        }
    }
    if (ids != NULL && (groups->max_pairs < ggml_nelements(ids) || groups->max_experts < w->ne[2])) {
        groups->max_pairs = MAX(groups->max_pairs, ggml_nelements(ids));
        groups->max_experts = MAX(groups->max_experts, w->ne[2]);
        groups->pair = room(groups->pair, (size_t) groups->max_pairs * sizeof *groups->pair);
        groups->first = room(groups->first, (size_t) (groups->max_experts + 1) * sizeof *groups->first);
        groups->busy = room(groups->busy, (size_t) groups->max_experts * sizeof *groups->busy);
        if (groups->pair == NULL || groups->first == NULL || groups->busy == NULL) {
            groups->max_pairs = groups->max_experts = 0;
            return false;
        }
    }
    return true;
}

bool products_take(struct products *self, struct ggml_tensor *node)
{
    const bool ours = node->op == self->custom_op && memcmp(node->op_params, self->custom, sizeof self->custom) == 0;
    if (self->computed) {
        products_begin(self);
    }
    if (!ours && ((node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) || !fits(node))) {
        return false;
    }
    if (!reserve(self, node)) {
        if (ours) {
            node->op = node->src[2] == NULL ? GGML_OP_MUL_MAT : GGML_OP_MUL_MAT_ID;
            memset(node->op_params, 0, sizeof node->op_params);
        }
        return false;
    }
    const enum kind kind = format_of(node->src[0])->kind;
    struct mark mark = {.node = self->n_nodes++};
    if (kind != KIND_FLOATS) {
        mark.quantises = self->quantised[kind].of != node->src[1];
        self->quantised[kind].of = node->src[1];
    }
    if (node->src[2] != NULL) {
        mark.groups = self->groups.of != node->src[2];
        self->groups.of = node->src[2];
    }
    atomic_store_explicit(&self->taken[mark.node], 0, memory_order_relaxed);
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

static int32_t expert_of(const struct ggml_tensor *ids, int64_t slot, int64_t token)
{
    int32_t expert;
    const int64_t at = slot * (int64_t) ids->nb[0] + token * (int64_t) ids->nb[1];
    memcpy(&expert, (const char *) ids->data + at, sizeof expert);
    return expert;
}

/* Counting sort of the pairs of a slot and a token. */
static void group(struct groups *groups, const struct ggml_tensor *ids, int64_t n_experts)
{
    int32_t *first = groups->first;
    memset(first, 0, (size_t) (n_experts + 1) * sizeof *first);
    for (int64_t token = 0; token < ids->ne[1]; token++) {
        for (int64_t slot = 0; slot < ids->ne[0]; slot++) {
            first[expert_of(ids, slot, token)]++;
        }
    }
    groups->n_busy = 0;
    for (int64_t expert = 0, n = 0; expert <= n_experts; expert++) {
        const int32_t own = expert < n_experts ? first[expert] : 0;
        if (own > 0) {
            groups->busy[groups->n_busy++] = (int32_t) expert;
        }
        n += own;
        first[expert] = (int32_t) n;
    }
    /* from behind, so that each expert's begin where they are to */
    for (int64_t token = ids->ne[1] - 1; token >= 0; token--) {
        for (int64_t slot = ids->ne[0] - 1; slot >= 0; slot--) {
            groups->pair[--first[expert_of(ids, slot, token)]] = (int32_t) (slot + ids->ne[0] * token);
        }
    }
}

/* Rows [first, stop) of a matrix times rows of activations: the first n_rows, or with `pair` those that it names. */
static void multiply(
    struct products *self, const struct ggml_tensor *node, int64_t expert, int64_t n_rows, const int32_t *pair,
    int64_t first, int64_t stop)
{
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    const struct format *format = format_of(w);
    const int64_t most = x->ne[0] > LONG_ROW ? FEW_ROWS : MAX_ROWS;
    const int64_t size = format->kind == KIND_FLOATS ? 0 : (int64_t) chunk_size[format->kind];
    const int64_t row_size = CEIL(x->ne[0], 256) * size;
    struct piece piece = {
        .format = format, .weights = (const uint8_t *) w->data + expert * (int64_t) w->nb[2],
        .row_bytes = (int64_t) w->nb[1], .n_columns = w->ne[0], .chunk_size = size,
    };
    for (int64_t begin = 0; begin < n_rows; begin += most) {
        piece.n_rows = (int) MIN(n_rows - begin, most);
        for (int k = 0; k < piece.n_rows; k++) {
            int64_t row = begin + k, result = row;
            if (pair != NULL) {
                const int64_t n_slots = node->ne[1], slot = pair[row] % n_slots, token = pair[row] / n_slots;
                result = pair[row];
                row = token * x->ne[1] + slot % x->ne[1];
            }
            piece.rows[k] = format->kind == KIND_FLOATS ? (const char *) row_of(x, row)
                : self->quantised[format->kind].chunks + row * row_size;
            piece.results[k] = (float *) node->data + result * node->ne[0];
        }
        (level == SIMD_AVX2 ? format->compute_avx2 : format->compute_avx512_vnni)(&piece, first, stop);
    }
}

/* The next of n pairs of strips for a thread, [*first, the result), all of one matrix of n_pairs; none: there are no
 * more. Half of what is left is shared out each time, so that all threads end at about the same time (guided
 * self-scheduling, Polychronopoulos and Kuck, 1987). */
static int64_t take_pairs(atomic_llong *taken, int64_t n, int64_t n_pairs, int n_threads, int64_t *first)
{
    long long at = atomic_load_explicit(taken, memory_order_relaxed);
    int64_t size;
    do {
        const int64_t share = n_threads == 1 ? n - at : (n - at) / (2 * n_threads);
        size = MIN(MIN(MAX(share, LEAST_PAIRS), n - at), n_pairs - at % n_pairs);
    } while (!atomic_compare_exchange_weak_explicit(
        taken, &at, at + size, memory_order_relaxed, memory_order_relaxed));
    *first = at;
    return at + size;
}

void products_compute(struct ggml_tensor *node, int ith, int nth, void *data)
{
    struct products *self = data;
    const struct ggml_tensor *w = node->src[0], *ids = node->src[2];
    const int64_t n_rows = w->ne[1], pair_of_strips = 2 * lanes[level];
    struct mark mark;
    memcpy(&mark, node->op_params + N_CUSTOM, sizeof mark);
    if (mark.groups && ith == nth - 1) {
        group(&self->groups, ids, w->ne[2]);
    }
    if (mark.quantises) {
        quantise_rows(self, node->src[1], format_of(w)->kind, ith, nth);
    }
    if (nth > 1 && (mark.groups || mark.quantises)) {
        wait_for_all(self, nth);
    }
    if (ith == 0) {
        self->computed = true;
    }
    /* a matrix is pairs of strips, the last of which has what is left */
    const int64_t n_pairs = MAX(n_rows / pair_of_strips, 1);
    const int64_t n = n_pairs * (ids == NULL ? 1 : self->groups.n_busy);
    int64_t first, stop;
    while ((stop = take_pairs(&self->taken[mark.node], n, n_pairs, nth, &first)) > first) {
        const int64_t matrix = first / n_pairs, row = first % n_pairs * pair_of_strips;
        const int64_t stop_row = stop % n_pairs == 0 ? n_rows : stop % n_pairs * pair_of_strips;
        if (ids == NULL) {
            multiply(self, node, 0, ggml_nrows(node->src[1]), NULL, row, stop_row);
        } else {
            const int32_t expert = self->groups.busy[matrix], *own = self->groups.first + expert;
            multiply(self, node, expert, own[1] - own[0], self->groups.pair + own[0], row, stop_row);
        }
    }
}
