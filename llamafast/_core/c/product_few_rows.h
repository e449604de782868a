/* One row of activations, or a few, in the notation of simd/level.h: weights are multiplied as they are unpacked. Sums
 * are those of product_kernels.h in the same order, and so are their bits. */

#define INLINE static inline __attribute__((always_inline))

/* Adds to x the products of `n_groups` vectors of weights, whose first columns are those from `column` on. */
TARGET INLINE void K(dot_few)(
    int shape, int n, const vi *w, int n_groups, const void *const *row, int column, vi *x)
{
    const int together = TOGETHER(shape);
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g += together) {
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            vi y[DOTS_OF_31];
            for (int k = 0; k < together; k++) {
                y[k] = K(four)((const int8_t *) row[i] + column + 4 * (g + k));
            }
            x[i] = DOTS(shape, x[i], w + g, y);
        }
    }
}

#define ADD_32(name, shape, bytes) \
    TARGET INLINE void K(add_##name)( \
        int n, const uint8_t *p, size_t row_bytes, int n_columns, const void *const *row, int offset, \
        struct ahead ahead, vf *sum) \
    { \
        for (int block = 0; block < n_columns / 32; block++) { \
            vi v[8], x[MAX_FEW]; \
            vf scale, min = vset(0); \
            fetch_near(ahead, 2 * block, 2 * block + 2); \
            K(block_##name)(p + (bytes) * block, row_bytes, v, &scale, &min); \
            for (int i = 0; i < n; i++) { \
                x[i] = K(start)(shape, row[i], offset, block); \
            } \
            K(dot_few)(shape, n, v, 8, row, 32 * block, x); \
            for (int i = 0; i < n; i++) { \
                sum[i] = K(with_32)(shape, sum[i], x[i], scale, min, row[i], block); \
            } \
        } \
    }

/* Blocks of 64 with four scales. */
#define ADD_64(name, bytes) \
    TARGET INLINE void K(add_##name)( \
        int n, const uint8_t *p, size_t row_bytes, int n_columns, const void *const *row, int offset, \
        struct ahead ahead, vf *sum) \
    { \
        (void) offset; \
        for (int block = 0; block < n_columns / 64; block++) { \
            vi v[16], x[MAX_FEW]; \
            vf scale[4]; \
            fetch_near(ahead, 4 * block, 4 * block + 4); \
            K(block_##name)(p + (bytes) * block, row_bytes, v, scale); \
            for (int k = 0; k < 4; k++) { \
                const int half = 4 * block + k; \
                for (int i = 0; i < n; i++) { \
                    x[i] = K(start)(HALVES, row[i], 0, half); \
                } \
                K(dot_few)(HALVES, n, v + 4 * k, 4, row, 16 * half, x); \
                for (int i = 0; i < n; i++) { \
                    sum[i] = K(with_32)(HALVES, sum[i], x[i], scale[k], vset(0), row[i], half); \
                } \
            } \
        } \
    }

/* Scales by block of 32. */
#define ADD_256(name, shape) \
    TARGET INLINE void K(add_##name)( \
        int n, const uint8_t *p, size_t row_bytes, int n_columns, const void *const *row, int offset, \
        struct ahead ahead, vf *sum) \
    { \
        vi fifths[8], x[8][MAX_FEW]; \
        struct K(scales) scales; \
        (void) n_columns; \
        (void) offset; \
        K(scales_##name)(p, row_bytes, &scales, fifths); \
        for (int block = 0; block < 8; block++) { \
            for (int i = 0; i < n; i++) { \
                x[block][i] = K(start)(shape, row[i], 0, block); \
            } \
        } \
        _Pragma("GCC unroll 4") for (int quarter = 0; quarter < 4; quarter++) { \
            vi v[16]; \
            fetch_near(ahead, 4 * quarter, 4 * quarter + 4); \
            K(quarter_##name)(p, row_bytes, fifths, quarter, v); \
            for (int k = 0; k < 4; k++) { \
                const int column = PLACE_##name(quarter, k); \
                K(dot_few)(shape, n, v + 4 * k, 4, row, column, x[column / 32]); \
            } \
        } \
        for (int i = 0; i < n; i++) { \
            vf of_chunk = vset(0); \
            for (int block = 0; block < 8; block++) { \
                of_chunk = vfma(vi_float(x[block][i]), scales.scale[block], of_chunk); \
            } \
            sum[i] = K(with_256)(shape, sum[i], of_chunk, &scales, row[i]); \
        } \
    }

/* Scales by block of 16: two quarters have half of the blocks, and have to be there before these are added in order. */
#define ADD_16(name, shape) \
    TARGET INLINE void K(add_##name)( \
        int n, const uint8_t *p, size_t row_bytes, int n_columns, const void *const *row, int offset, \
        struct ahead ahead, vf *sum) \
    { \
        vi fifths[8]; \
        vf of_chunk[MAX_FEW]; \
        struct K(scales) scales; \
        (void) n_columns; \
        (void) offset; \
        K(scales_##name)(p, row_bytes, &scales, fifths); \
        for (int i = 0; i < n; i++) { \
            of_chunk[i] = vset(0); \
        } \
        _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++) { \
            vi x[8][MAX_FEW]; \
            _Pragma("GCC unroll 2") for (int within = 0; within < 2; within++) { \
                const int quarter = 2 * half + within; \
                vi v[16]; \
                fetch_near(ahead, 4 * quarter, 4 * quarter + 4); \
                K(quarter_##name)(p, row_bytes, fifths, quarter, v); \
                for (int k = 0; k < 4; k++) { \
                    const int column = PLACE_##name(quarter, k), block = column / 16; \
                    for (int i = 0; i < n; i++) { \
                        x[block % 8][i] = K(start)(shape, row[i], 0, block); \
                    } \
                    K(dot_few)(shape, n, v + 4 * k, 4, row, column, x[block % 8]); \
                } \
            } \
            for (int block = 0; block < 8; block++) { \
                for (int i = 0; i < n; i++) { \
                    of_chunk[i] = vfma(vi_float(x[block][i]), scales.scale[8 * half + block], of_chunk[i]); \
                } \
            } \
        } \
        for (int i = 0; i < n; i++) { \
            sum[i] = K(with_256)(shape, sum[i], of_chunk[i], &scales, row[i]); \
        } \
    }

/* Blocks of 16 whose scales are whole numbers: here the products of two blocks are multiplied with them, for each lane,
 * which is less work than to multiply the weights as a tile has them. The products fit into 16 bits. */
#define ADD_SCALED(name, shape) \
    TARGET INLINE void K(add_##name)( \
        int n, const uint8_t *p, size_t row_bytes, int n_columns, const void *const *row, int offset, \
        struct ahead ahead, vf *sum) \
    { \
        vi upper[8], x[MAX_FEW]; \
        struct K(scales) scales; \
        (void) n_columns; \
        (void) offset; \
        K(scales_##name)(p, row_bytes, &scales, upper); \
        for (int i = 0; i < n; i++) { \
            x[i] = vi_set(0); \
        } \
        _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++) { \
            vi of_block[2][4][MAX_FEW]; \
            _Pragma("GCC unroll 2") for (int within = 0; within < 2; within++) { \
                const int quarter = 2 * half + within; \
                vi v[16]; \
                fetch_near(ahead, 4 * quarter, 4 * quarter + 4); \
                K(quarter_##name)(p, row_bytes, upper, quarter, v); \
                for (int k = 0; k < 4; k++) { \
                    for (int i = 0; i < n; i++) { \
                        of_block[within][k][i] = vi_set(0); \
                    } \
                    K(dot_few)(K_MINS, n, v + 4 * k, 4, row, PLACE_##name(quarter, k), of_block[within][k]); \
                } \
            } \
            for (int k = 0; k < 4; k++) { \
                const int pair = 4 * half + k; \
                const vi scale = vi_words(scales.whole[pair / 2], 2 * (pair % 2)); \
                for (int i = 0; i < n; i++) { \
                    x[i] = vi_dot_pairs(x[i], vi_pairs(of_block[0][k][i], of_block[1][k][i]), scale); \
                } \
            } \
        } \
        for (int i = 0; i < n; i++) { \
            sum[i] = K(with_scaled)( \
                shape, sum[i], K(as_scaled)(shape, x[i], &scales, row[i]), &scales, row[i]); \
        } \
    }

#define TAKE(name, n) \
    case n: \
        K(add_##name)(n, weights, (size_t) piece->row_bytes, n_columns, row, piece->format->offset, ahead, sum); \
        break;
#define UP_TO_2(name) TAKE(name, 1) TAKE(name, 2)
#define UP_TO_4(name) UP_TO_2(name) TAKE(name, 3) TAKE(name, 4)

/* Rows of weights [first, first + VL) times all rows of a piece, of which there are so many at most. */
#define FEW(name, up_to) \
    TARGET static void K(few_##name)(const struct piece *piece, int64_t first) \
    { \
        const int64_t n_chunks = CEIL(piece->n_columns, 256), strip_bytes = piece->row_bytes * VL; \
        const uint8_t *weights = piece->weights + first * piece->row_bytes; \
        struct ahead ahead = {weights + strip_bytes, 16 * strip_bytes / piece->n_columns}; \
        const void *row[MAX_FEW]; \
        vf sum[MAX_FEW]; \
        for (int i = 0; i < MAX_FEW; i++) { \
            row[i] = piece->rows[MIN(i, piece->n_rows - 1)]; \
            sum[i] = vset(0); \
        } \
        for (int64_t chunk = 0; chunk < n_chunks; chunk++) { \
            const int n_columns = (int) MIN(piece->n_columns - 256 * chunk, 256); \
            switch (piece->n_rows) { \
            up_to(name) \
            } \
            weights += piece->format->chunk_bytes; \
            ahead.from += 16 * ahead.part; \
            for (int i = 0; i < MAX_FEW; i++) { \
                row[i] = (const char *) row[i] + piece->chunk_size; \
            } \
        } \
        for (int i = 0; i < piece->n_rows; i++) { \
            vstore(piece->results[i] + first, sum[i]); \
        } \
    }

ADD_32(q4_0, OFFSET, 18)
ADD_32(q4_1, SUMS, 20)
ADD_32(q5_0, OFFSET, 22)
ADD_32(q5_1, SUMS, 24)
ADD_32(q8_0, WIDE, 34)
ADD_32(iq4_nl, WIDE, 18)
ADD_32(mxfp4, OFFSET, 17)
ADD_64(nvfp4, 36)
ADD_256(q4_k, K_MINS)
ADD_256(q5_k, K_MINS)
ADD_256(iq4_xs, K_WIDE)
ADD_16(q6_k, K_OFFSET)
ADD_SCALED(q2_k, SCALED_MINS)
ADD_SCALED(q3_k, SCALED_WIDE)

FEW(q4_0, UP_TO_4)
FEW(q4_1, UP_TO_4)
FEW(q5_0, UP_TO_4)
FEW(q5_1, UP_TO_4)
FEW(q8_0, UP_TO_4)
FEW(iq4_nl, UP_TO_4)
FEW(mxfp4, UP_TO_4)
FEW(nvfp4, UP_TO_4)
FEW(q2_k, UP_TO_4)
FEW(q3_k, UP_TO_4)
FEW(q4_k, UP_TO_2)
FEW(q5_k, UP_TO_2)
FEW(q6_k, UP_TO_2)
FEW(iq4_xs, UP_TO_4)

#undef INLINE
#undef TAKE
#undef UP_TO_2
#undef UP_TO_4
#undef ADD_32
#undef ADD_64
#undef ADD_256
#undef ADD_16
#undef ADD_SCALED
#undef FEW
