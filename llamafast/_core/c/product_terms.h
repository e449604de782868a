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
        shape == SUMS || shape == K_MINS || shape == SCALED_MINS ? 0
        : shape == K_OFFSET ? ((const struct chunk_k *) row)->start[block]
        : shape == K_WIDE ? ((const struct chunk_k *) row)->start_wide[block]
        : shape == HALVES ? ((const struct chunk_offsets *) row)->start_half[block]
        : shape == SCALED_WIDE ? ((const struct chunk_k *) row)->start_wide_all
        : ((const struct chunk_offsets *) row)->start[offset][block]);
}

/* The sum of a row with the products x of a block of 32, or of HALVES of 16. */
TARGET INLINE vf K(with_32)(int shape, vf sum, vi x, vf scale, vf min, const void *row, int block)
{
    const struct chunk_sums *sums = row;
    const struct chunk_offsets *offsets = row;
    const float of_row = shape == SUMS ? sums->scale[block] : offsets->scale[shape == HALVES ? block / 2 : block];
    const vf both = vmul(scale, vset(of_row));
    sum = vfma(vi_float(x), both, sum);
    return shape == SUMS ? vfma(min, vset(sums->sum[block]), sum) : sum;
}

/* The products of whole numbers that blocks have with the sums of what they are multiplied with. */
TARGET INLINE vi K(with_sums)(int n_pairs, const vi *pair, const int16_t *sum)
{
    vi x = vi_set(0);
    for (int k = 0; k < n_pairs; k++) {
        x = vi_dot_pairs(x, pair[k], K(four)((const int8_t *) (sum + 2 * k)));
    }
    return x;
}

/* The sum of a row with the scaled products of a chunk. */
TARGET INLINE vf K(with_256)(int shape, vf sum, vf of_chunk, const struct K(scales) *scales, const struct chunk_k *row)
{
    if (shape == K_MINS) {
        const vi mins = K(with_sums)(4, scales->pair_min, row->pair_sum);
        of_chunk = vfma(vi_float(mins), scales->min_scale, of_chunk);
    }
    return vfma(of_chunk, vset(row->scale), sum);
}

/* The sum of a row with the products x of a chunk whose blocks' scales are in them. */
TARGET INLINE vf K(with_scaled)(int shape, vf sum, vi x, const struct K(scales) *scales, const struct chunk_k *row)
{
    vf of_chunk = vmul(vi_float(x), scales->scale[0]);
    if (shape == SCALED_MINS) {
        const vi mins = K(with_sums)(8, scales->pair_min, row->sum);
        of_chunk = vfma(vi_float(mins), scales->min_scale, of_chunk);
    }
    return vfma(of_chunk, vset(row->scale), sum);
}

/* What a tile's values give, from x, which is what the values without scales and offset gave when scales came after. */
TARGET INLINE vi K(as_scaled)(int shape, vi x, const struct K(scales) *scales, const struct chunk_k *row)
{
    if (shape == SCALED_MINS) {
        return x;
    }
    vi pair[8];
    for (int k = 0; k < 8; k++) {
        pair[k] = vi_words(scales->whole[k / 2], 2 * (k % 2));
    }
    return vi_sub(vi_left(K(with_sums)(8, pair, row->sum), 2), x);
}

#define IS_WIDE(shape) ((shape) == WIDE || (shape) == K_WIDE || (shape) == SCALED_WIDE)
/* How many groups of four columns are added up together, and their products. */
#define TOGETHER(shape) \
    (IS_WIDE(shape) ? 1 : (shape) == K_OFFSET || (shape) == SCALED_MINS ? CEIL(DOTS_OF_31, 2) : DOTS_OF_31)
#define DOTS(shape, sum, w, y) \
    (IS_WIDE(shape) ? vi_dot_wide(sum, (w)[0], (y)[0]) : vi_dots(TOGETHER(shape), sum, w, y))

#undef INLINE
