/* Rows of BF16 times rows of floats that are rounded to it, as ggml does where the processor has an instruction for pairs
 * of such products (AVX512_BF16): twice as fast as products of floats. Lanes are pairs of columns. */

#define TARGET_BRAINS __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512bf16,f16c,popcnt")))

enum { BRAINS = 32, BRAIN_ROWS = 6 };           /* columns of a vector; rows whose sums are in registers */

TARGET_BRAINS static void quantise_brains(const float *x, int64_t n, void *to)
{
    for (int64_t k = 0; k < n; k += BRAINS) {
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(x + k));
        _mm512_storeu_si512((uint16_t *) to + k, (__m512i) both);
    }
}

/* Four rows of weights, from `byte` on, times n rows of the piece: `burst` lines of a row before the next row's. */
TARGET_BRAINS static inline __attribute__((always_inline)) void four_spans_of_brains(
    int burst, int n, const struct piece *piece, const uint8_t *w, int from, int64_t byte, __m512 sum[][4])
{
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
        for (int b = 0; b < burst; b++) {
            const int64_t at = byte + b * LINE;
            const __m512bh v = (__m512bh) _mm512_loadu_si512(w + j * piece->row_bytes + at);
#pragma GCC unroll 8
            for (int i = 0; i < n; i++) {
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], v, (__m512bh) _mm512_loadu_si512(piece->rows[from + i] + at));
            }
        }
    }
}

/* Four rows of weights, of which the first is `row`, times n rows of the piece from `from` on. */
TARGET_BRAINS static inline __attribute__((always_inline)) void four_rows_of_brains(
    int n, const struct piece *piece, int64_t row, int from)
{
    const uint8_t *w = piece->weights + row * piece->row_bytes;
    const int64_t stop = piece->n_columns * 2;
    const int burst = n == 1 ? 4 : 2;
    int64_t byte = 0;
    __m512 sum[BRAIN_ROWS][4];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = _mm512_setzero_ps();
    }
    for (; byte + burst * LINE <= stop; byte += burst * LINE) {
        if (from == 0) {
            fetch_lines(w + 4 * (piece->row_bytes + byte), 4 * burst * LINE);
        }
        four_spans_of_brains(burst, n, piece, w, from, byte, sum);
    }
    for (; byte < stop; byte += LINE) {
        four_spans_of_brains(1, n, piece, w, from, byte, sum);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        vsum4(piece->results[from + i] + row, sum[i]);
    }
}

#define TAKE(n) \
    case n: \
        for (int64_t row = begin; row < end; row += 4) { \
            four_rows_of_brains(n, piece, MIN(row, end - 4), from); \
        } \
        break;

TARGET_BRAINS static void compute_brains(const struct piece *piece, int64_t first, int64_t stop)
{
    for (int64_t begin = first, end; begin < stop; begin = end) {
        end = end_of_block(piece, begin, stop);
        for (int from = 0; from < piece->n_rows; from += BRAIN_ROWS) {
            switch (MIN(piece->n_rows - from, BRAIN_ROWS)) {
            TAKE(1) TAKE(2) TAKE(3) TAKE(4) TAKE(5) TAKE(6)
            }
        }
    }
}

#undef TAKE
#undef TARGET_BRAINS
