/* Low-rank adapters on CPUs, so that each row of a batch has its own (Chen et al.: Punica, arXiv 2310.18547; Sheng et al.:
 * S-LoRA, arXiv 2311.03285).
 *
 * llama.cpp gives all rows of a batch the same adapters, and to change them makes it plan its graphs anew, which takes as
 * long as a step of a small model. Here it is given all that anybody needs, and at its branches of a graph (W x + s B A x)
 * each row gets those that are its own: what others have is not computed for it, and is 0.
 *
 * A row of a result is the same, bit for bit, whatever other rows there are. */
#ifndef LLAMAFAST_ADAPTERS_H
#define LLAMAFAST_ADAPTERS_H

#include <stdbool.h>
#include <stdint.h>

struct ggml_tensor;
struct adapters;

enum { MAX_ADAPTERS = 16 };

/* Use the best instruction set (see simd/level.h) that the processor has and that is not above `limit`; returns it.
 * Comes before everything else. Not thread-safe. */
int adapters_use(int limit);

/* What a context knows of its adapters. NULL: out of memory. */
struct adapters *adapters_new(void);
void adapters_free(struct adapters *self);

/* llama.cpp is given `n` adapters from now on, the i-th with the scale that this writes to scales[i]; it tells their nodes
 * apart. `alphas` are those of their files, 0 where they have none. */
void adapters_activate(struct adapters *self, int n, const float *alphas, float *scales);

/* A batch is going to be computed: `n_rows` rows, of which `outputs` (n_outputs) name those that give some. Row r is
 * scaled[i * n_rows + r] times the i-th adapter's; where it is `uniform`, all rows are as the first one. What is not may
 * not be divided, nor its order changed: `tokens` tell that. */
void adapters_begin(
    struct adapters *self, int32_t n_rows, const int32_t *tokens, const float *scaled, int32_t n_outputs,
    const int32_t *outputs, bool uniform);

/* Make of a node of an adapter's branch that is not computed yet a custom operation for the rows of this batch, or ready
 * one of these again: true, or false where it is none. Nodes come in the order in which they are computed. */
bool adapters_take(struct adapters *self, struct ggml_tensor *node);

/* Whether a branch was met since adapters_begin that is no adapter's, or whose rows are not those of the batch: what was
 * computed is wrong. */
bool adapters_failed(const struct adapters *self);

#endif
