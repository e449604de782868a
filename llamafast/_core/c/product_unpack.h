/* Strips of weights → tiles, in the notation of simd/level.h: VL rows of up to 256 columns, transposed so that a vector
 * has four columns of each row. p is where the first row's columns begin, n the bytes from a row to the next. The layouts
 * are those of ggml-common.h. */

struct K(tile) {
    uint8_t value[64][4 * VL];                  /* by four columns */
    float scale[16][VL];                        /* by block */
    float min[8][VL];                           /* by block of 32; or int16 pairs of them, by two blocks of 32 */
    float min_scale[VL];
};

#define LOW vi_bytes(15)
#define NIBBLE(v, high) vi_and((high) ? vi_right(v, 4) : (v), LOW)

/* 32 columns of 4 bits in 16 bytes: the first 16 are the low halves. */
TARGET static inline void K(nibbles)(const uint8_t *p, size_t n, vi *to)
{
    vi v[4];
    vi_columns(p, n, v);
    for (int g = 0; g < 4; g++) {
        to[g] = NIBBLE(v[g], false);
        to[4 + g] = NIBBLE(v[g], true);
    }
}

TARGET static void K(unpack_q4_0)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    for (int block = 0; block < n_columns / 32; block++, p += 18) {
        vi v[8];
        vstore(tile->scale[block], vi_halves(vi_rows(p, n)));
        K(nibbles)(p + 2, n, v);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], v[g]);
        }
    }
}

TARGET static void K(unpack_q4_1)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    for (int block = 0; block < n_columns / 32; block++, p += 20) {
        const vi scales = vi_rows(p, n);
        vi v[8];
        vstore(tile->scale[block], vi_halves(scales));
        vstore(tile->min[block], vi_halves(vi_right(scales, 16)));
        K(nibbles)(p + 4, n, v);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], v[g]);
        }
    }
}

TARGET static void K(unpack_q5_0)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    for (int block = 0; block < n_columns / 32; block++, p += 22) {
        const vi fifths = vi_rows(p + 2, n);
        vi v[8];
        vstore(tile->scale[block], vi_halves(vi_rows(p, n)));
        K(nibbles)(p + 6, n, v);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], vi_or(v[g], vi_fifths(fifths, g)));
        }
    }
}

TARGET static void K(unpack_q5_1)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    for (int block = 0; block < n_columns / 32; block++, p += 24) {
        const vi scales = vi_rows(p, n), fifths = vi_rows(p + 4, n);
        vi v[8];
        vstore(tile->scale[block], vi_halves(scales));
        vstore(tile->min[block], vi_halves(vi_right(scales, 16)));
        K(nibbles)(p + 8, n, v);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], vi_or(v[g], vi_fifths(fifths, g)));
        }
    }
}

TARGET static void K(unpack_q8_0)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    for (int block = 0; block < n_columns / 32; block++, p += 34) {
        vi v[8];
        vstore(tile->scale[block], vi_halves(vi_rows(p, n)));
        vi_columns(p + 2, n, v);
        vi_columns(p + 18, n, v + 4);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], vi_xor(v[g], vi_bytes((char) WIDE_OFFSET)));
        }
    }
}

TARGET static void K(unpack_iq4_nl)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    for (int block = 0; block < n_columns / 32; block++, p += 18) {
        vi v[8];
        vstore(tile->scale[block], vi_halves(vi_rows(p, n)));
        K(nibbles)(p + 2, n, v);
        for (int g = 0; g < 8; g++) {
            vi_store(tile->value[8 * block + g], vi_xor(vi_lookup(levels, v[g]), vi_bytes((char) WIDE_OFFSET)));
        }
    }
}

/* Two halves d and d_min, and 12 bytes: eight scales and eight mins of 6 bits, as the low 6 of the first 4 and the
 * second 4 bytes, and 4 low and 4 high bits of the last 4 with the first ones' upper 2. */
TARGET static inline void K(unpack_k_scales)(const uint8_t *p, size_t n, struct K(tile) *tile)
{
    const vi six = vi_bytes(63), upper = vi_bytes(0x30), byte = vi_set(0xFF);
    vi v[4], scale[2], min[2];
    vi_columns(p, n, v);
    scale[0] = vi_and(v[1], six);
    min[0] = vi_and(v[2], six);
    scale[1] = vi_or(NIBBLE(v[3], false), vi_and(vi_right(v[1], 2), upper));
    min[1] = vi_or(NIBBLE(v[3], true), vi_and(vi_right(v[2], 2), upper));
    const vf d = vi_halves(v[0]);
    vstore(tile->min_scale, vsub(vset(0), vi_halves(vi_right(v[0], 16))));
    for (int block = 0; block < 8; block++) {
        const vi of_block = vi_and(vi_right(scale[block / 4], 8 * (block % 4)), byte);
        vstore(tile->scale[block], vmul(vi_float(of_block), d));
    }
    for (int pair = 0; pair < 4; pair++) {
        const vi two = vi_right(min[pair / 2], 16 * (pair % 2));
        vi_store(tile->min[pair], vi_or(vi_and(two, byte), vi_left(vi_and(two, vi_set(0xFF00)), 8)));
    }
}

TARGET static void K(unpack_q4_k)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    (void) n_columns;
    K(unpack_k_scales)(p, n, tile);
    for (int part = 0; part < 8; part++) {
        /* 32 bytes have the columns of one block in their low halves, of the next in the high ones */
        uint8_t (*value)[4 * VL] = tile->value + 16 * (part / 2) + 4 * (part % 2);
        vi v[4];
        vi_columns(p + 16 + 16 * part, n, v);
        for (int g = 0; g < 4; g++) {
            vi_store(value[g], NIBBLE(v[g], false));
            vi_store(value[8 + g], NIBBLE(v[g], true));
        }
    }
}

/* The bit `block` of every byte, as 16. */
#define FIFTH(v, block) vi_and((block) < 4 ? vi_left(v, 4 - (block)) : vi_right(v, (block) - 4), vi_bytes(16))

TARGET static void K(unpack_q5_k)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    vi fifths[8];
    (void) n_columns;
    K(unpack_k_scales)(p, n, tile);
    vi_columns(p + 16, n, fifths);
    vi_columns(p + 32, n, fifths + 4);
#pragma GCC unroll 8
    for (int part = 0; part < 8; part++) {
        uint8_t (*value)[4 * VL] = tile->value + 16 * (part / 2) + 4 * (part % 2);
        const int block = part / 2 * 2;
        vi v[4];
        vi_columns(p + 48 + 16 * part, n, v);
        for (int g = 0; g < 4; g++) {
            const vi upper = fifths[part % 2 * 4 + g];
            vi_store(value[g], vi_or(NIBBLE(v[g], false), FIFTH(upper, block)));
            vi_store(value[8 + g], vi_or(NIBBLE(v[g], true), FIFTH(upper, block + 1)));
        }
    }
}

TARGET static void K(unpack_q6_k)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile)
{
    const vi upper = vi_bytes(0x30);
    const vf d = vi_halves(vi_right(vi_rows(p + 206, n), 16));
    vi scale[4];
    (void) n_columns;
    vi_columns(p + 192, n, scale);
    for (int block = 0; block < 16; block++) {
        const vi of_block = vi_right_signed(vi_left(scale[block / 4], 24 - 8 * (block % 4)), 24);
        vstore(tile->scale[block], vmul(vi_float(of_block), d));
    }
    for (int part = 0; part < 4; part++) {
        /* a half of 128 columns, and of that 16 columns of each 32 */
        const int of = part / 2, within = part % 2;
        uint8_t (*value)[4 * VL] = tile->value + 32 * of + 4 * within;
        vi first[4], second[4], two[4];
        vi_columns(p + 64 * of + 16 * within, n, first);
        vi_columns(p + 64 * of + 32 + 16 * within, n, second);
        vi_columns(p + 128 + 32 * of + 16 * within, n, two);
        for (int g = 0; g < 4; g++) {
            vi_store(value[g], vi_or(NIBBLE(first[g], false), vi_and(vi_left(two[g], 4), upper)));
            vi_store(value[8 + g], vi_or(NIBBLE(second[g], false), vi_and(vi_left(two[g], 2), upper)));
            vi_store(value[16 + g], vi_or(NIBBLE(first[g], true), vi_and(two[g], upper)));
            vi_store(value[24 + g], vi_or(NIBBLE(second[g], true), vi_and(vi_right(two[g], 2), upper)));
        }
    }
}

#undef LOW
#undef NIBBLE
#undef FIFTH
