/* Attention on CPUs, in place of ggml's.
 *
 * Sequences share the cells of the cache, and ggml looks at each of them for each head of each row: where 16 sequences
 * decode, 15 of 16 looks are in vain. Here the mask of a row is read once for all its heads, and the heads that share a
 * head of keys are taken together, so that a key is read and converted once for them. Rows of a prompt that see nearly
 * the same cells are taken together too. The softmax is computed in one pass (Milakov, Gimelshein: Online normalizer
 * calculation for softmax. arXiv 1805.02867, 2018). */
#ifndef LLAMAFAST_ATTENTION_H
#define LLAMAFAST_ATTENTION_H

#include <stdbool.h>

struct ggml_tensor;

/* Use the best instruction set (see simd/level.h) that the processor has and that is not above `limit`; returns it.
 * Comes before everything else. Not thread-safe. */
int attention_use(int limit);

/* Make of a GGML_OP_FLASH_ATTN_EXT that is not computed yet a custom operation that gives the same: true, or false where
 * it stays as it is: with ALiBi, capped scores, more than 131,072 cells, or other types and shapes than these.
 *   q     (head size, rows, heads, streams), float
 *   k, v  (head size, cells, heads of keys, streams), half; a head size is a multiple of 16. Or, with AVX2, Q8_0 of up
 *         to 256, which is dequantised to halves where it is seen, once for all rows and heads that are taken together
 *   mask  (cells, at least rows, 1, streams or 1), half
 *   sinks (heads), float, or none */
bool attention_take(struct ggml_tensor *node);

/* The operation itself: what thread `ith` of `nth` has to do of it. */
void attention_compute(struct ggml_tensor *node, int ith, int nth, void *data);

#endif
