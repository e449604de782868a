/* Strips of weights times quantised rows, in the notation of simd/level.h. How many rows and strips there are is a
 * constant wherever these functions are inlined: it keeps sums in registers. */

#define INLINE static inline __attribute__((always_inline))

/* Adds to x the products of `n_groups` groups of four columns from `group` on, for n rows and `width` strips. */
TARGET INLINE void K(dot)(
    int shape, int width, int n, const struct K(tile) *tile, const int8_t *const *value, int group, int n_groups,
    vi x[][2])
{
    const int together = TOGETHER(shape);
    const int8_t *at[MAX_TAKEN];
    for (int i = 0; i < n; i++) {
        at[i] = value[i] + 4 * group;
    }
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g += together) {
        vi w[2][DOTS_OF_31];
        for (int strip = 0; strip < width; strip++) {
            for (int k = 0; k < together; k++) {
                w[strip][k] = vi_load(tile[strip].value[group + g + k]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            vi y[DOTS_OF_31];
            for (int k = 0; k < together; k++) {
                y[k] = K(four)(at[i] + 4 * (g + k));
            }
            for (int strip = 0; strip < width; strip++) {
                x[i][strip] = DOTS(shape, x[i][strip], w[strip], y);
            }
        }
    }
}

/* Scales of activations by block of 32: Q4_1 and Q5_1 (SUMS), Q4_0, Q5_0, Q8_0 and the like, NVFP4 (HALVES). */
TARGET INLINE void K(multiply_32)(
    int shape, int width, int n, const struct K(tile) *tile, int n_columns, const void *const *row, int offset,
    struct ahead ahead, vf sum[][2])
{
    const int8_t *value[MAX_TAKEN];
    for (int i = 0; i < n; i++) {
        value[i] = row[i];
    }
    const int n_groups = shape == HALVES ? 4 : 8;
    for (int block = 0; block < n_columns / (4 * n_groups); block++) {
        fetch(ahead, n_groups * block / 8, n_groups * (block + 1) / 8);
        vi x[MAX_TAKEN][2];
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            x[i][0] = x[i][1] = K(start)(shape, row[i], offset, block);
        }
        K(dot)(shape, width, n, tile, value, n_groups * block, n_groups, x);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            for (int strip = 0; strip < width; strip++) {
                const struct K(scales) *scales = &tile[strip].scales;
                const vf min = shape == SUMS ? scales->min[block] : vset(0);
                sum[i][strip] = K(with_32)(
                    shape, sum[i][strip], x[i][strip], scales->scale[block], min, row[i], block);
            }
        }
    }
}

/* One scale of activations for 256 columns; those of weights by block of 32 (Q4_K and Q5_K with mins, IQ4_XS) or of 16
 * (Q6_K). */
TARGET INLINE void K(multiply_256)(
    int shape, int width, int n, const struct K(tile) *tile, const void *const *row, struct ahead ahead, vf sum[][2])
{
    const int n_blocks = shape == K_OFFSET ? 16 : 8;
    const int8_t *value[MAX_TAKEN];
    vf of_chunk[MAX_TAKEN][2];
    for (int i = 0; i < n; i++) {
        value[i] = row[i];
        of_chunk[i][0] = of_chunk[i][1] = vset(0);
    }
    for (int block = 0; block < n_blocks; block++) {
        fetch(ahead, 8 * block / n_blocks, 8 * (block + 1) / n_blocks);
        vi x[MAX_TAKEN][2];
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            x[i][0] = x[i][1] = K(start)(shape, row[i], 0, block);
        }
        K(dot)(shape, width, n, tile, value, 64 / n_blocks * block, 64 / n_blocks, x);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            for (int strip = 0; strip < width; strip++) {
                const vf scale = tile[strip].scales.scale[block];
                of_chunk[i][strip] = vfma(vi_float(x[i][strip]), scale, of_chunk[i][strip]);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        for (int strip = 0; strip < width; strip++) {
            sum[i][strip] = K(with_256)(shape, sum[i][strip], of_chunk[i][strip], &tile[strip].scales, row[i]);
        }
    }
}

/* The same, where a tile has the values times the scales (Q2_K, Q3_K): sums of 256 are whole numbers. There are two of
 * each, because one vector after the other into a few would wait for each other. */
TARGET INLINE void K(multiply_scaled)(
    int shape, int width, int n, const struct K(tile) *tile, const void *const *row, struct ahead ahead, vf sum[][2])
{
    const bool two = n * width < MAX_TAKEN;
    const int8_t *value[MAX_TAKEN];
    vi x[2][MAX_TAKEN][2];
    for (int i = 0; i < n; i++) {
        value[i] = row[i];
        x[0][i][0] = x[0][i][1] = K(start)(shape, row[i], 0, 0);
        x[1][i][0] = x[1][i][1] = vi_set(0);
    }
    for (int part = 0; part < 8; part++) {
        fetch(ahead, part, part + 1);
        K(dot)(shape, width, n, tile, value, 8 * part, two ? 4 : 8, x[0]);
        if (two) {
            K(dot)(shape, width, n, tile, value, 8 * part + 4, 4, x[1]);
        }
    }
    for (int i = 0; i < n; i++) {
        for (int strip = 0; strip < width; strip++) {
            const vi both = vi_add(x[0][i][strip], x[1][i][strip]);
            sum[i][strip] = K(with_scaled)(shape, sum[i][strip], both, &tile[strip].scales, row[i]);
        }
    }
}

/* n rows; `sums` has `width` vectors for each. */
TARGET INLINE void K(multiply)(
    int shape, int width, int n, const struct K(tile) *tile, int n_columns, const void *const *row, int offset,
    struct ahead ahead, float *sums)
{
    vf sum[MAX_TAKEN][2];
    for (int i = 0; i < n; i++) {
        for (int strip = 0; strip < width; strip++) {
            sum[i][strip] = vload(sums + (2 * i + strip) * VL);
        }
    }
    if (shape == SUMS || shape == OFFSET || shape == WIDE || shape == HALVES) {
        K(multiply_32)(shape, width, n, tile, n_columns, row, offset, ahead, sum);
    } else if (shape == SCALED_MINS || shape == SCALED_WIDE) {
        K(multiply_scaled)(shape, width, n, tile, row, ahead, sum);
    } else {
        K(multiply_256)(shape, width, n, tile, row, ahead, sum);
    }
    for (int i = 0; i < n; i++) {
        for (int strip = 0; strip < width; strip++) {
            vstore(sums + (2 * i + strip) * VL, sum[i][strip]);
        }
    }
}

#define TAKE(n) \
    case n: \
        K(multiply)(shape, width, n, tile, n_columns, row, offset, ahead, sums); \
        break;

/* All rows of a piece, a few at a time; the first of them fetch what is ahead. */
TARGET INLINE void K(multiply_rows)(
    int shape, int width, const struct K(tile) *tile, int n_columns, const void *const *row, int n_rows, int offset,
    struct ahead ahead, float *sums)
{
    const int most = width == 2 ? TAKEN_BY_TWO : TAKEN_BY_ONE;
    for (; n_rows >= most; n_rows -= most, row += most, sums += most * 2 * VL) {
        K(multiply)(shape, width, most, tile, n_columns, row, offset, ahead, sums);
        ahead.part = 0;
    }
    switch (n_rows) {
    TAKE(1) TAKE(2) TAKE(3)
#if TAKEN_BY_ONE > 4
    TAKE(4) TAKE(5) TAKE(6) TAKE(7)
#endif
    }
}

/* Rows of weights [first, first + VL) and, with `width` 2, [second, second + VL) times all rows of the piece. */
TARGET INLINE void K(strips)(int shape, int width, const struct piece *piece, int64_t first, int64_t second)
{
    struct K(tile) tile[2];
    float sums[MAX_ROWS * 2 * VL];
    const struct format *format = piece->format;
    const int64_t at[2] = {first, second};
    const void *row[MAX_ROWS];
    const int64_t n_chunks = CEIL(piece->n_columns, 256), strip_bytes = piece->row_bytes * VL;
    /* a strip is in one piece, of which as much is fetched as the one before it is multiplied of, 16 columns a part */
    struct ahead ahead = {.part = 16 * strip_bytes / piece->n_columns};
    memset(sums, 0, (size_t) piece->n_rows * 2 * VL * sizeof *sums);
    for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
        const int n_columns = (int) MIN(piece->n_columns - 256 * chunk, 256), n_parts = n_columns / 16;
        for (int strip = 0; strip < width; strip++) {
            const uint8_t *weights = piece->weights + at[strip] * piece->row_bytes;
            ahead.from = weights + width * strip_bytes + 16 * chunk * ahead.part;
            fetch(ahead, n_parts / 2, 3 * n_parts / 4);
            format->K(unpack)(
                weights + chunk * format->chunk_bytes, (size_t) piece->row_bytes, n_columns, tile + strip);
            fetch(ahead, 3 * n_parts / 4, n_parts);
        }
        for (int i = 0; i < piece->n_rows; i++) {
            row[i] = piece->rows[i] + chunk * piece->chunk_size;
        }
        K(multiply_rows)(shape, width, tile, n_columns, row, piece->n_rows, format->offset, ahead, sums);
    }
    for (int i = 0; i < piece->n_rows; i++) {
        for (int strip = 0; strip < width; strip++) {
            vstore(piece->results[i] + at[strip], vload(sums + (2 * i + strip) * VL));
        }
    }
}

#define STRIPS(shape) \
    TARGET __attribute__((noinline)) static void K(strips_##shape)( \
        int width, const struct piece *piece, int64_t first, int64_t second) \
    { \
        if (width == 2) { \
            K(strips)(shape, 2, piece, first, second); \
        } else { \
            K(strips)(shape, 1, piece, first, first); \
        } \
    }

STRIPS(SUMS)
STRIPS(OFFSET)
STRIPS(WIDE)
STRIPS(HALVES)
STRIPS(K_MINS)
STRIPS(K_OFFSET)
STRIPS(K_WIDE)
STRIPS(SCALED_MINS)
STRIPS(SCALED_WIDE)

/* Rows of weights [first, stop), VL of them at least. */
static void K(compute_strips)(const struct piece *piece, int64_t first, int64_t stop)
{
    static void (*const strips[])(int, const struct piece *, int64_t, int64_t) = {
        [SUMS] = K(strips_SUMS), [OFFSET] = K(strips_OFFSET), [WIDE] = K(strips_WIDE), [HALVES] = K(strips_HALVES),
        [K_MINS] = K(strips_K_MINS), [K_OFFSET] = K(strips_K_OFFSET), [K_WIDE] = K(strips_K_WIDE),
        [SCALED_MINS] = K(strips_SCALED_MINS), [SCALED_WIDE] = K(strips_SCALED_WIDE),
    };
    const int width = piece->n_rows >= ROWS_FOR_TWO ? 2 : 1;
    if (piece->n_rows <= piece->format->few) {
        for (int64_t row = first; row < stop; row += VL) {
            piece->format->K(few_rows)(piece, MIN(row, stop - VL));
        }
        return;
    }
    for (int64_t row = first; row < stop;) {
        /* a strip that would end behind the last row begins earlier, and computes some rows again */
        const int64_t second = row + VL, taken = width == 2 && second < stop ? 2 : 1;
        strips[piece->format->shape]((int) taken, piece, MIN(row, stop - VL), MIN(second, stop - VL));
        row += taken * VL;
    }
}

#undef INLINE
#undef TAKE
#undef STRIPS
#undef DOTS
#undef TOGETHER
#undef IS_WIDE
