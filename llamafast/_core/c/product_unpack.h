/* Weights → bytes in vectors, in the notation of simd/level.h: VL rows, transposed so that a vector has four columns of
 * each row. p is where the first row's columns begin, n the bytes from a row to the next. The layouts are those of
 * ggml-common.h. Where many rows of activations are multiplied, 256 columns become a tile; few rows are multiplied with
 * the vectors as they come (product_few_rows.h). */

#define INLINE static inline __attribute__((always_inline))

struct K(scales) {
    vf scale[16];                               /* by block */
    vf min[8];                                  /* by block of 32 */
    vi pair_min[4];                             /* int16 pairs of them, by two blocks of 32 */
    vf min_scale;
};

struct K(tile) {
    uint8_t value[64][4 * VL];                  /* by four columns */
    struct K(scales) scales;
};

#define LOW vi_bytes(15)
#define NIBBLE(v, high) vi_and((high) ? vi_right(v, 4) : (v), LOW)

/* 32 columns of 4 bits in 16 bytes: the first 16 are the low halves. */
TARGET INLINE void K(nibbles)(const uint8_t *p, size_t n, vi *to)
{
    vi v[4];
    vi_columns(p, n, v);
    for (int g = 0; g < 4; g++) {
        to[g] = NIBBLE(v[g], false);
        to[4 + g] = NIBBLE(v[g], true);
    }
}

/* Blocks of 32 columns: eight vectors, and what they are to be multiplied with. */

TARGET INLINE void K(block_q4_0)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    K(nibbles)(p + 2, n, v);
}

TARGET INLINE void K(block_q4_1)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    *min = vi_halves(vi_right(first[0], 16));
    K(nibbles)(p + 4, n, v);
}

TARGET INLINE void K(block_q5_0)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    const vi fifths = vi_or(vi_right(first[0], 16), vi_left(first[1], 16));
    *scale = vi_halves(first[0]);
    K(nibbles)(p + 6, n, v);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_or(v[g], vi_fifths(fifths, g));
    }
}

TARGET INLINE void K(block_q5_1)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    *min = vi_halves(vi_right(first[0], 16));
    K(nibbles)(p + 8, n, v);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_or(v[g], vi_fifths(first[1], g));
    }
}

TARGET INLINE void K(block_q8_0)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    vi_columns(p + 2, n, v);
    vi_columns(p + 18, n, v + 4);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_xor(v[g], vi_bytes((char) WIDE_OFFSET));
    }
}

TARGET INLINE void K(block_iq4_nl)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    K(nibbles)(p + 2, n, v);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_xor(vi_lookup(levels, v[g]), vi_bytes((char) WIDE_OFFSET));
    }
}

/* Chunks of 256 columns: their scales and fifth bits, and sixteen vectors of each quarter of them. */

/* Two halves d and d_min, and 12 bytes: eight scales and eight mins of 6 bits, as the low 6 of the first 4 and the
 * second 4 bytes, and 4 low and 4 high bits of the last 4 with the first ones' upper 2. */
TARGET INLINE void K(scales_q4_k)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *fifths)
{
    const vi six = vi_bytes(63), upper = vi_bytes(0x30), byte = vi_set(0xFF);
    vi v[4], scale[2], min[2];
    (void) fifths;
    vi_columns(p, n, v);
    scale[0] = vi_and(v[1], six);
    min[0] = vi_and(v[2], six);
    scale[1] = vi_or(NIBBLE(v[3], false), vi_and(vi_right(v[1], 2), upper));
    min[1] = vi_or(NIBBLE(v[3], true), vi_and(vi_right(v[2], 2), upper));
    const vf d = vi_halves(v[0]);
    scales->min_scale = vsub(vset(0), vi_halves(vi_right(v[0], 16)));
    for (int block = 0; block < 8; block++) {
        const vi of_block = vi_and(vi_right(scale[block / 4], 8 * (block % 4)), byte);
        scales->scale[block] = vmul(vi_float(of_block), d);
    }
    for (int pair = 0; pair < 4; pair++) {
        const vi two = vi_right(min[pair / 2], 16 * (pair % 2));
        scales->pair_min[pair] = vi_or(vi_and(two, byte), vi_left(vi_and(two, vi_set(0xFF00)), 8));
    }
}

TARGET INLINE void K(scales_q5_k)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *fifths)
{
    K(scales_q4_k)(p, n, scales, fifths);
    vi_columns(p + 16, n, fifths);
    vi_columns(p + 32, n, fifths + 4);
}

TARGET INLINE void K(scales_q6_k)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *fifths)
{
    vi last[4], scale[4];
    (void) fifths;
    vi_columns(p + 194, n, last);
    const vf d = vi_halves(vi_right(last[3], 16));
    vi_columns(p + 192, n, scale);
    for (int block = 0; block < 16; block++) {
        const vi of_block = vi_right_signed(vi_left(scale[block / 4], 24 - 8 * (block % 4)), 24);
        scales->scale[block] = vmul(vi_float(of_block), d);
    }
}

/* 32 bytes have the columns of one block in their low halves, of the next in the high ones. */
TARGET INLINE void K(quarter_q4_k)(const uint8_t *p, size_t n, const vi *fifths, int quarter, vi *v)
{
    (void) fifths;
    for (int half = 0; half < 2; half++) {
        vi nibbles[8];
        K(nibbles)(p + 16 + 32 * quarter + 16 * half, n, nibbles);
        for (int g = 0; g < 4; g++) {
            v[4 * half + g] = nibbles[g];
            v[8 + 4 * half + g] = nibbles[4 + g];
        }
    }
}

/* The bit `block` of every byte, as 16. */
#define FIFTH(v, block) vi_and((block) < 4 ? vi_left(v, 4 - (block)) : vi_right(v, (block) - 4), vi_bytes(16))

TARGET INLINE void K(quarter_q5_k)(const uint8_t *p, size_t n, const vi *fifths, int quarter, vi *v)
{
    K(quarter_q4_k)(p + 32, n, fifths, quarter, v);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_or(v[g], FIFTH(fifths[g], 2 * quarter));
        v[8 + g] = vi_or(v[8 + g], FIFTH(fifths[g], 2 * quarter + 1));
    }
}

/* Of a half of 128 columns 16 of each 32. */
TARGET INLINE void K(quarter_q6_k)(const uint8_t *p, size_t n, const vi *fifths, int quarter, vi *v)
{
    (void) fifths;
    const int half = quarter / 2, within = quarter % 2;
    const vi upper = vi_bytes(0x30);
    vi first[4], second[4], two[4];
    vi_columns(p + 64 * half + 16 * within, n, first);
    vi_columns(p + 64 * half + 32 + 16 * within, n, second);
    vi_columns(p + 128 + 32 * half + 16 * within, n, two);
    for (int g = 0; g < 4; g++) {
        v[g] = vi_or(NIBBLE(first[g], false), vi_and(vi_left(two[g], 4), upper));
        v[4 + g] = vi_or(NIBBLE(second[g], false), vi_and(vi_left(two[g], 2), upper));
        v[8 + g] = vi_or(NIBBLE(first[g], true), vi_and(two[g], upper));
        v[12 + g] = vi_or(NIBBLE(second[g], true), vi_and(vi_right(two[g], 2), upper));
    }
}

/* The first columns of the four vectors v[4 * k] and on, of the sixteen of a quarter. */
#define PLACE_q4_k(quarter, k) (64 * (quarter) + 16 * (k))
#define PLACE_q5_k PLACE_q4_k
#define PLACE_q6_k(quarter, k) (128 * ((quarter) / 2) + 16 * ((quarter) % 2) + 32 * (k))

#define UNPACK_32(name, bytes) \
    TARGET static void K(unpack_##name)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile) \
    { \
        for (int block = 0; block < n_columns / 32; block++) { \
            vi v[8]; \
            K(block_##name)(p + (bytes) * block, n, v, tile->scales.scale + block, tile->scales.min + block); \
            for (int g = 0; g < 8; g++) { \
                vi_store(tile->value[8 * block + g], v[g]); \
            } \
        } \
    }

#define UNPACK_256(name) \
    TARGET static void K(unpack_##name)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile) \
    { \
        (void) n_columns; \
        vi fifths[8]; \
        K(scales_##name)(p, n, &tile->scales, fifths); \
        for (int quarter = 0; quarter < 4; quarter++) { \
            vi v[16]; \
            K(quarter_##name)(p, n, fifths, quarter, v); \
            for (int g = 0; g < 16; g++) { \
                vi_store(tile->value[PLACE_##name(quarter, g / 4) / 4 + g % 4], v[g]); \
            } \
        } \
    }

UNPACK_32(q4_0, 18)
UNPACK_32(q4_1, 20)
UNPACK_32(q5_0, 22)
UNPACK_32(q5_1, 24)
UNPACK_32(q8_0, 34)
UNPACK_32(iq4_nl, 18)
UNPACK_256(q4_k)
UNPACK_256(q5_k)
UNPACK_256(q6_k)

#undef INLINE
#undef LOW
#undef NIBBLE
#undef FIFTH
#undef UNPACK_32
#undef UNPACK_256
