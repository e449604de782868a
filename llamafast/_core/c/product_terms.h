/* What all sums of products are made of, in the notation of simd/level.h. */

#define INLINE static inline __attribute__((always_inline))

/* Four values of a row, in each lane. */
TARGET INLINE vi K(four)(const int8_t *value)
{
    int32_t bytes;
    memcpy(&bytes, value, sizeof bytes);
    return vi_set(bytes);
}

/* Where the products of block `block` begin. */
TARGET INLINE vi K(start)(int shape, const void *row, int offset, int block)
{
    return vi_set(
        shape == SUMS || shape == K_MINS ? 0
        : shape == K_OFFSET ? ((const struct chunk_k *) row)->start[block]
        : ((const struct chunk_offsets *) row)->start[offset][block]);
}

/* The sum of a row with the products x of a block of 32. */
TARGET INLINE vf K(with_32)(int shape, vf sum, vi x, vf scale, vf min, const void *row, int block)
{
    const struct chunk_sums *sums = row;
    const struct chunk_offsets *offsets = row;
    const vf both = vmul(scale, vset(shape == SUMS ? sums->scale[block] : offsets->scale[block]));
    sum = vfma(vi_float(x), both, sum);
    return shape == SUMS ? vfma(min, vset(sums->sum[block]), sum) : sum;
}

/* The sum of a row with the scaled products of a chunk. */
TARGET INLINE vf K(with_256)(int shape, vf sum, vf of_chunk, const struct K(scales) *scales, const struct chunk_k *row)
{
    if (shape == K_MINS) {
        vi mins = vi_set(0);
        for (int pair = 0; pair < 4; pair++) {
            mins = vi_dot_pairs(mins, scales->pair_min[pair], K(four)((const int8_t *) (row->pair_sum + 2 * pair)));
        }
        of_chunk = vfma(vi_float(mins), scales->min_scale, of_chunk);
    }
    return vfma(of_chunk, vset(row->scale), sum);
}

#define DOT(shape, sum, w, y) ((shape) == WIDE ? vi_dot_wide(sum, w, y) : vi_dot(sum, w, y))

#undef INLINE
