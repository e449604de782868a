/* Weights → bytes in vectors, in the notation of simd/level.h: VL rows, transposed so that a vector has four columns of
 * each row. p is where the first row's columns begin, n the bytes from a row to the next. The layouts are those of
 * ggml-common.h. Where many rows of activations are multiplied, 256 columns become a tile; few rows are multiplied with
 * the vectors as they come (product_few_rows.h). */

#define INLINE static inline __attribute__((always_inline))

struct K(scales) {
    vf scale[16];                               /* by block */
    vf min[8];                                  /* by block of 32 */
    vi pair_min[8];                             /* int16 pairs of them, by two blocks */
    vf min_scale;
    vi whole[4];                                /* scales in signed bytes, by four blocks of 16 */
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

/* 32 columns of 4 bits that stand for IQ4_NL's levels, with WIDE_OFFSET. */
TARGET INLINE void K(uneven)(const uint8_t *p, size_t n, vi *v)
{
    static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    K(nibbles)(p, n, v);
    for (int g = 0; g < 8; g++) {
        v[g] = vi_xor(vi_lookup(levels, v[g]), vi_bytes((char) WIDE_OFFSET));
    }
}

TARGET INLINE void K(block_iq4_nl)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    *scale = vi_halves(first[0]);
    K(uneven)(p + 2, n, v);
}

/* Twice what E2M1 means, and 16 more. */
TARGET INLINE vi K(e2m1)(vi nibbles)
{
    static const int8_t levels[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
    return vi_lookup(levels, nibbles);
}

/* The scale is 2^(byte - 128), half of what E8M0 means, as ggml has it. Floats below 2^-126 have other bits than those with
 * an exponent. */
TARGET INLINE void K(block_mxfp4)(const uint8_t *p, size_t n, vi *v, vf *scale, vf *min)
{
    vi first[4];
    (void) min;
    vi_columns(p, n, first);
    const vi exponent = vi_and(first[0], vi_set(0xFF));
    const vi small = vi_max(vi_left(exponent, 22), vi_set(1 << 21));
    *scale = vi_bits_float(vi_max(vi_left(vi_sub(exponent, vi_set(1)), 23), small));
    K(nibbles)(p + 1, n, v);
    for (int g = 0; g < 8; g++) {
        v[g] = K(e2m1)(v[g]);
    }
}

/* 64 columns: four scales of 16, then 8 bytes for each of these, the first 8 in the low halves. A scale is half of what
 * UE4M3 means, 0 for its NaN: its bits are those of a float that is 2^119 times too small. The sign says nothing, but
 * that ggml takes a NaN with one for a number. */
TARGET INLINE void K(block_nvfp4)(const uint8_t *p, size_t n, vi *v, vf *scale)
{
    const vi all = vi_bytes((char) 0xFF);
    vi first[4], pair[4];
    vi_columns(p, n, first);
    /* the upper bit of each byte that is 0x7F */
    const vi is_nan = vi_and(vi_add8(first[0], vi_bytes(1)), vi_xor(first[0], all));
    for (int k = 0; k < 4; k++) {
        const vi byte = vi_and(vi_right(first[0], 8 * k), vi_set(0x7F));
        const vi number = vi_xor(vi_right_signed(vi_left(is_nan, 24 - 8 * k), 31), all);
        scale[k] = vmul(vi_bits_float(vi_and(vi_left(byte, 20), number)), vset(0x1p119f));
    }
    for (int k = 0; k < 2; k++) {
        vi_columns(p + 4 + 16 * k, n, pair);
        for (int g = 0; g < 4; g++) {
            vi *to = v + 8 * k + 4 * (g / 2) + g % 2;
            to[0] = K(e2m1)(NIBBLE(pair[g], false));
            to[2] = K(e2m1)(NIBBLE(pair[g], true));
        }
    }
}

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

#define UNPACK_64(name, bytes) \
    TARGET static void K(unpack_##name)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile) \
    { \
        for (int block = 0; block < n_columns / 64; block++) { \
            vi v[16]; \
            K(block_##name)(p + (bytes) * block, n, v, tile->scales.scale + 4 * block); \
            for (int g = 0; g < 16; g++) { \
                vi_store(tile->value[16 * block + g], v[g]); \
            } \
        } \
    }

UNPACK_32(q4_0, 18)
UNPACK_32(q4_1, 20)
UNPACK_32(q5_0, 22)
UNPACK_32(q5_1, 24)
UNPACK_32(q8_0, 34)
UNPACK_32(iq4_nl, 18)
UNPACK_32(mxfp4, 17)
UNPACK_64(nvfp4, 36)

#undef INLINE
#undef UNPACK_32
#undef UNPACK_64
