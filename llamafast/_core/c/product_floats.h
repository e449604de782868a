/* Rows of floats times rows of floats, in the notation of simd/level.h: lanes are columns, and their sums are added up
 * at the end. */

#define INLINE static inline __attribute__((always_inline))

/* VL weights from column k on. */
TARGET INLINE vf K(weights)(enum ggml_type type, const uint8_t *row, int64_t k)
{
    return type == GGML_TYPE_F32 ? vload((const float *) row + k)
        : type == GGML_TYPE_F16 ? vhalf((const uint16_t *) row + k) : vbrain((const uint16_t *) row + k);
}

/* Four rows of weights, from column k on, times n rows of the piece: `burst` vectors of a row before the next row's, as
 * memory gives what lies together sooner. Each sum is the same chain whatever the burst. */
TARGET INLINE void K(four_spans)(
    enum ggml_type type, int burst, int n, const struct piece *piece, const uint8_t *w, int from, int64_t k, vf sum[][4])
{
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
        for (int b = 0; b < burst; b++) {
            const vf a = K(weights)(type, w + j * piece->row_bytes, k + b * VL);
#pragma GCC unroll 8
            for (int i = 0; i < n; i++) {
                sum[i][j] = vfma(a, vload((const float *) piece->rows[from + i] + k + b * VL), sum[i][j]);
            }
        }
    }
}

/* Four rows of weights, of which the first is `row`, times n rows of the piece from `from` on. */
TARGET INLINE void K(four_rows)(enum ggml_type type, int n, const struct piece *piece, int64_t row, int from)
{
    const uint8_t *w = piece->weights + row * piece->row_bytes;
    const bool is_f32 = type == GGML_TYPE_F32;
    const int burst = !is_f32 || n > BURST_ROWS ? 1 : n == 1 ? 4 : 2, size = is_f32 ? 4 : 2;
    /* as much is fetched as is read, from the next four rows or, of F32, whose rows are long, from nearer by; with a few
     * rows those are read so fast that the processor foresees it best by itself */
    const bool fetches = from == 0 && !(is_f32 && n <= UNFETCHED_ROWS);
    const uint8_t *ahead = w + (is_f32 ? F32_AHEAD : 4 * piece->row_bytes);
    int64_t k = 0;
    vf sum[FLOAT_ROWS][4];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = vset(0);
    }
    for (; k + burst * VL <= piece->n_columns; k += burst * VL) {
        if (fetches) {
            fetch_lines(ahead + 4 * size * k, 4 * size * burst * VL);
        }
        K(four_spans)(type, burst, n, piece, w, from, k, sum);
    }
    for (; k < piece->n_columns; k += VL) {
        K(four_spans)(type, 1, n, piece, w, from, k, sum);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        vsum4(piece->results[from + i] + row, sum[i]);
    }
}

/* Rows of weights [first, stop), four of them at least, times n rows of the piece. */
TARGET INLINE void K(float_rows)(
    enum ggml_type type, int n, const struct piece *piece, int64_t first, int64_t stop, int from)
{
    for (int64_t row = first; row < stop; row += 4) {
        K(four_rows)(type, n, piece, MIN(row, stop - 4), from);
    }
}

#define TAKE(n) \
    case n: \
        K(float_rows)(type, n, piece, begin, end, from); \
        break;

/* A block of weights stays in the second cache while all rows of the piece, a few at a time and about as many each time,
 * are multiplied with it. */
TARGET INLINE void K(floats)(enum ggml_type type, const struct piece *piece, int64_t first, int64_t stop)
{
    for (int64_t begin = first, end; begin < stop; begin = end) {
        end = end_of_block(piece, begin, stop);
        for (int from = 0, n; from < piece->n_rows; from += n) {
            const int left = piece->n_rows - from;
            n = CEIL(left, CEIL(left, FLOAT_ROWS));
            switch (n) {
            TAKE(1) TAKE(2) TAKE(3)
#if FLOAT_ROWS > 3
            TAKE(4) TAKE(5) TAKE(6)
#endif
            }
        }
    }
}

TARGET static void K(compute_f32)(const struct piece *piece, int64_t first, int64_t stop)
{
    K(floats)(GGML_TYPE_F32, piece, first, stop);
}

TARGET static void K(compute_f16)(const struct piece *piece, int64_t first, int64_t stop)
{
    K(floats)(GGML_TYPE_F16, piece, first, stop);
}

TARGET static void K(compute_bf16)(const struct piece *piece, int64_t first, int64_t stop)
{
    K(floats)(GGML_TYPE_BF16, piece, first, stop);
}

#undef INLINE
#undef TAKE
