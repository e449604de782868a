#include "adapters.h"

#include "simd/level.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <stdlib.h>
#include <string.h>

#include "simd/baseline.h"
#include "adapter_kernels.h"
#if defined(__x86_64__)
#include "simd/avx2.h"
#include "adapter_kernels.h"
#include "simd/avx512.h"
#include "adapter_kernels.h"
#endif

enum {
    N_CUSTOM = 6,                               /* op_params of a custom operation; the others are ours */
    APART = 1000,                               /* see adapters_activate */
};

typedef float (*dot_t)(enum ggml_type, const void *, const float *, int64_t);

static dot_t dot = dot_baseline;

/* What becomes of a branch: A x (down), B A x times the scale (up), or the scale alone where ggml multiplies. */
enum part { DOWN, UP, SCALE, N_PARTS };

struct adapters {
    int32_t custom[N_PARTS][N_CUSTOM];          /* op_params of operations of ours */
    enum ggml_op custom_op;
    int n;
    float alphas[MAX_ADAPTERS], scales[MAX_ADAPTERS];
    int32_t n_rows, n_outputs;
    const int32_t *tokens;
    const float *scaled;
    const int32_t *outputs;
    bool uniform, failed;
};

/* What an operation keeps behind the parameters of a custom one. */
struct mark {
    int32_t adapter;
    float weight;                               /* alpha / rank, or 1 */
    float told;                                 /* SCALE: what ggml's operation had */
};

static void compute_down(struct ggml_tensor *node, int ith, int nth, void *data);
static void compute_up(struct ggml_tensor *node, int ith, int nth, void *data);
static void compute_scale(struct ggml_tensor *node, int ith, int nth, void *data);

int adapters_use(int limit)
{
    const int level = simd_level(limit);
#if defined(__x86_64__)
    dot = level >= SIMD_AVX512 ? dot_avx512 : level >= SIMD_AVX2 ? dot_avx2 : dot_baseline;
#endif
    return level;
}

struct adapters *adapters_new(void)
{
    static const ggml_custom_op_t computes[N_PARTS] = {compute_down, compute_up, compute_scale};
    struct adapters *self = calloc(1, sizeof *self);
    const struct ggml_init_params size = {.mem_size = (1 + 2 * N_PARTS) * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *context = self == NULL ? NULL : ggml_init(size);
    if (context == NULL) {
        free(self);
        return NULL;
    }
    struct ggml_tensor *argument = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    for (int part = 0; part < N_PARTS; part++) {
        const struct ggml_tensor *model = ggml_custom_4d(
            context, GGML_TYPE_F32, 1, 1, 1, 1, &argument, 1, computes[part], GGML_N_TASKS_MAX, self);
        memcpy(self->custom[part], model->op_params, sizeof self->custom[part]);
        self->custom_op = model->op;
    }
    ggml_free(context);
    return self;
}

void adapters_free(struct adapters *self)
{
    free(self);
}

/* A node of a branch has alpha * scale / rank, or the scale where there is no alpha. With these scales no two adapters
 * have the same, whatever their ranks: k + 1 over the rank, or beyond what that can be. */
void adapters_activate(struct adapters *self, int n, const float *alphas, float *scales)
{
    self->n = n;
    for (int k = 0; k < n; k++) {
        self->alphas[k] = alphas[k];
        self->scales[k] = scales[k] = alphas[k] != 0 ? (float) (k + 1) / alphas[k] : (float) (APART * (k + 1));
    }
}

void adapters_begin(
    struct adapters *self, int32_t n_rows, const int32_t *tokens, const float *scaled, int32_t n_outputs,
    const int32_t *outputs, bool uniform)
{
    self->n_rows = n_rows;
    self->tokens = tokens;
    self->scaled = scaled;
    self->n_outputs = n_outputs;
    self->outputs = outputs;
    self->uniform = uniform;
    self->failed = false;
}

bool adapters_failed(const struct adapters *self)
{
    return self->failed;
}

static bool is_ours(const struct adapters *self, const struct ggml_tensor *node, enum part part)
{
    return node->op == self->custom_op && memcmp(node->op_params, self->custom[part], sizeof self->custom[part]) == 0;
}

static struct mark mark_of(const struct ggml_tensor *node)
{
    struct mark mark;
    memcpy(&mark, node->op_params + N_CUSTOM, sizeof mark);
    return mark;
}

static void take(const struct adapters *self, struct ggml_tensor *node, enum part part, const struct mark *mark)
{
    memcpy(node->op_params, self->custom[part], sizeof self->custom[part]);
    memcpy(node->op_params + N_CUSTOM, mark, sizeof *mark);
    node->op = self->custom_op;
}

/* Whether a tensor is half of an adapter's pair. */
static bool is_half(const struct ggml_tensor *tensor, const char *suffix)
{
    const size_t length = strlen(tensor->name), end = strlen(suffix);
    return length > end && strcmp(tensor->name + length - end, suffix) == 0;
}

static bool fits(const struct ggml_tensor *node)
{
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    return (w->type == GGML_TYPE_F32 || w->type == GGML_TYPE_F16) && w->ne[2] == 1 && w->ne[3] == 1
        && w->nb[0] == ggml_type_size(w->type) && w->buffer != NULL && ggml_backend_buffer_is_host(w->buffer)
        && x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[3] == 1
        && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

/* Whose branch it is: see adapters_activate. -1: nobody's. */
static int adapter_of(const struct adapters *self, float told, int64_t rank, float *weight)
{
    for (int k = 0; k < self->n; k++) {
        const float alpha = self->alphas[k];
        if (told == (alpha != 0 ? self->scales[k] * alpha / (float) rank : self->scales[k])) {
            *weight = alpha != 0 ? alpha / (float) rank : 1;
            return k;
        }
    }
    return -1;
}

/* The end of a branch knows whose it is, and tells the operations before it. */
static bool take_end(struct adapters *self, struct ggml_tensor *node)
{
    struct ggml_tensor *product = node->src[0];
    const struct ggml_tensor *b = product->src[0];
    struct mark mark = {.adapter = -1};
    if (is_ours(self, node, SCALE)) {
        mark.told = mark_of(node).told;
    } else {
        memcpy(&mark.told, node->op_params, sizeof mark.told);
    }
    mark.adapter = adapter_of(self, mark.told, b->ne[0], &mark.weight);
    /* rows are tokens, but where experts have one each */
    const int64_t n_tokens = product->src[2] != NULL ? node->ne[2] : ggml_nrows(node);
    if (mark.adapter < 0 || (!self->uniform && n_tokens != self->n_rows && n_tokens != self->n_outputs)) {
        self->failed = true;
        mark.adapter = -1;
    }
    if (is_ours(self, product, UP)) {
        take(self, product, UP, &mark);
    }
    if (is_ours(self, product->src[1], DOWN)) {
        take(self, product->src[1], DOWN, &mark);
    }
    take(self, node, SCALE, &mark);
    return true;
}

bool adapters_take(struct adapters *self, struct ggml_tensor *node)
{
    struct ggml_tensor *first = node->src[0];
    if (self->n == 0 || first == NULL) {
        return false;
    }
    if (node->op == GGML_OP_GET_ROWS && !self->uniform && strcmp(node->src[1]->name, "inp_tokens") == 0) {
        const struct ggml_tensor *tokens = node->src[1];
        self->failed |= tokens->ne[0] != self->n_rows
            || memcmp(tokens->data, self->tokens, (size_t) self->n_rows * sizeof *self->tokens) != 0;
        return false;
    }
    if (node->op == GGML_OP_SCALE || is_ours(self, node, SCALE)) {
        return first->src[0] != NULL && is_half(first->src[0], ".lora_b") && take_end(self, node);
    }
    if (is_ours(self, node, DOWN) || is_ours(self, node, UP)) {
        return true;
    }
    if (node->op != GGML_OP_MUL_MAT || !fits(node)) {
        return false;
    }
    const struct mark mark = {.adapter = 0};
    if (is_half(first, ".lora_a")) {
        take(self, node, DOWN, &mark);
        return true;
    }
    if (is_half(first, ".lora_b")) {
        take(self, node, UP, &mark);
        return true;
    }
    return false;
}

/* By how much a row of `n_tokens` is scaled. */
static float scale_of(const struct adapters *self, const struct mark *mark, int64_t token, int64_t n_tokens)
{
    const float *scaled = self->scaled + (int64_t) mark->adapter * self->n_rows;
    if (mark->adapter < 0) {
        return 0;
    }
    if (self->uniform) {
        return scaled[0] * mark->weight;
    }
    return scaled[n_tokens == self->n_rows ? token : self->outputs[token]] * mark->weight;
}

static const float *row_of(const struct ggml_tensor *x, int64_t row)
{
    return (const float *) ((const char *) x->data + row % x->ne[1] * x->nb[1] + row / x->ne[1] * x->nb[2]);
}

/* Which columns of a row of n a thread computes. */
static int64_t share(int64_t n, int i, int nth)
{
    return n * i / nth;
}

static void compute_down(struct ggml_tensor *node, int ith, int nth, void *data)
{
    const struct adapters *self = data;
    const struct ggml_tensor *a = node->src[0], *x = node->src[1];
    const struct mark mark = mark_of(node);
    const int64_t n_rows = ggml_nrows(node), stop = share(a->ne[1], ith + 1, nth);
    for (int64_t row = 0; row < n_rows; row++) {
        const bool has_it = scale_of(self, &mark, row, n_rows) != 0;
        for (int64_t i = share(a->ne[1], ith, nth); i < stop; i++) {
            ((float *) node->data)[row * a->ne[1] + i] = !has_it ? 0
                : dot(a->type, (const char *) a->data + i * (int64_t) a->nb[1], row_of(x, row), a->ne[0]);
        }
    }
}

static void compute_up(struct ggml_tensor *node, int ith, int nth, void *data)
{
    const struct adapters *self = data;
    const struct ggml_tensor *b = node->src[0], *x = node->src[1];
    const struct mark mark = mark_of(node);
    const int64_t n_rows = ggml_nrows(node), first = share(b->ne[1], ith, nth), stop = share(b->ne[1], ith + 1, nth);
    for (int64_t row = 0; row < n_rows; row++) {
        float *to = (float *) node->data + row * b->ne[1];
        const float scale = scale_of(self, &mark, row, n_rows);
        if (scale == 0) {
            memset(to + first, 0, (size_t) (stop - first) * sizeof *to);
            continue;
        }
        for (int64_t i = first; i < stop; i++) {
            to[i] = scale * dot(b->type, (const char *) b->data + i * (int64_t) b->nb[1], row_of(x, row), b->ne[0]);
        }
    }
}

static void compute_scale(struct ggml_tensor *node, int ith, int nth, void *data)
{
    const struct adapters *self = data;
    const struct ggml_tensor *x = node->src[0];
    const struct mark mark = mark_of(node);
    const bool scaled = is_ours(self, x, UP);
    const int64_t n_rows = ggml_nrows(node), each = x->src[2] != NULL ? node->ne[1] : 1;
    if (scaled && node->data == x->data) {
        return;
    }
    for (int64_t row = share(n_rows, ith, nth); row < share(n_rows, ith + 1, nth); row++) {
        float *to = (float *) node->data + row * node->ne[0];
        const float *from = (const float *) x->data + row * node->ne[0];
        const float scale = scaled ? 1 : scale_of(self, &mark, row / each, n_rows / each);
        for (int64_t i = 0; i < node->ne[0]; i++) {
            to[i] = scale == 0 ? 0 : scale * from[i];
        }
    }
}
