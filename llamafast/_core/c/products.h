/* Products with quantised weights on CPUs, in place of ggml's.
 *
 * ggml unpacks a block of weights again for every row of a batch. Here a strip of weights is unpacked once for all
 * rows, and what several products multiply is quantised once for all of them. The weights stay as the file has them.
 *
 * A row of a result is the same, bit for bit, whatever other rows there are and however many threads: it is one chain
 * of multiply-adds over the blocks of a row of weights, in order. */
#ifndef LLAMAFAST_PRODUCTS_H
#define LLAMAFAST_PRODUCTS_H

#include <stdbool.h>
#include <stdint.h>

struct ggml_tensor;
struct products;

/* Use the best instruction set (see simd/level.h) that the processor has and that is not above `limit`; returns it.
 * Below SIMD_AVX2 nothing is taken. Comes before everything else. Not thread-safe. */
int products_use(int limit);

/* What the products of one context share: room for quantised rows, the threads' barrier. NULL: out of memory. */
struct products *products_new(void);
void products_free(struct products *self);

/* A new computation begins: whatever was quantised before is forgotten. */
void products_begin(struct products *self);

/* Make of a GGML_OP_MUL_MAT or GGML_OP_MUL_MAT_ID that is not computed yet a custom operation that gives the same, or
 * ready one of these for being computed again: true, or false where it stays as it is. Nodes come in the order in which
 * they are computed; no thread computes. */
bool products_take(struct products *self, struct ggml_tensor *node);

/* The operation itself: what thread `ith` of `nth` has to do of it. */
void products_compute(struct ggml_tensor *node, int ith, int nth, void *data);

#endif
