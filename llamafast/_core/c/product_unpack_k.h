/* Weights → bytes in vectors, as product_unpack.h has it, of types whose blocks of 16 or 32 columns have scales of few bits,
 * and one float for 256 columns: what scales and upper bits there are, then sixteen vectors of each quarter. */

#define INLINE static inline __attribute__((always_inline))

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

/* A half d, eight times two upper bits of scales, and eight times four lower ones; 32 is taken from them. */
TARGET INLINE void K(scales_iq4_xs)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *fifths)
{
    vi v[4];
    (void) fifths;
    vi_columns(p, n, v);
    const vf d = vi_halves(v[0]);
    for (int block = 0; block < 8; block++) {
        const vi lower = vi_and(vi_right(v[1], 4 * block), vi_set(15));
        const vi upper = vi_and(vi_right(v[0], 12 + 2 * block), vi_set(0x30));
        scales->scale[block] = vmul(vi_float(vi_sub(vi_or(lower, upper), vi_set(32))), d);
    }
}

/* Sixteen bytes, each a scale and above it a min; behind the columns d and d_min. */
TARGET INLINE void K(scales_q2_k)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *upper)
{
    vi v[4], last[4];
    (void) upper;
    vi_columns(p, n, v);
    vi_columns(p + 68, n, last);
    scales->scale[0] = vi_halves(last[3]);
    scales->min_scale = vsub(vset(0), vi_halves(vi_right(last[3], 16)));
    for (int k = 0; k < 4; k++) {
        const vi min = NIBBLE(v[k], true);
        scales->whole[k] = NIBBLE(v[k], false);
        scales->pair_min[2 * k] = vi_words(min, 0);
        scales->pair_min[2 * k + 1] = vi_words(min, 2);
    }
}

/* Sixteen scales of 6 bits, from which 32 is taken: lower halves in 8 bytes, two upper bits each in 4. d is the last of
 * all, and negative here: a weight times its scale is 128 at most, which fits into a byte only when its sign is another.
 * `upper` has the columns' upper bits, a bit of every byte for each 32 of them. */
TARGET INLINE void K(scales_q3_k)(const uint8_t *p, size_t n, struct K(scales) *scales, vi *upper)
{
    const vi two = vi_bytes(0x30), offset = vi_bytes(32);
    vi v[4];
    vi_columns(p + 94, n, v);
    const vi first = vi_or(vi_right(v[0], 16), vi_left(v[1], 16));
    const vi second = vi_or(vi_right(v[1], 16), vi_left(v[2], 16));
    const vi bits = vi_or(vi_right(v[2], 16), vi_left(v[3], 16));
    scales->scale[0] = vsub(vset(0), vi_halves(vi_right(v[3], 16)));
    scales->whole[0] = vi_sub8(vi_or(NIBBLE(first, false), vi_and(vi_left(bits, 4), two)), offset);
    scales->whole[1] = vi_sub8(vi_or(NIBBLE(second, false), vi_and(vi_left(bits, 2), two)), offset);
    scales->whole[2] = vi_sub8(vi_or(NIBBLE(first, true), vi_and(bits, two)), offset);
    scales->whole[3] = vi_sub8(vi_or(NIBBLE(second, true), vi_and(vi_right(bits, 2), two)), offset);
    vi_columns(p, n, upper);
    vi_columns(p + 16, n, upper + 4);
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

/* Two blocks of 32, whose bytes have the first 16 in their low halves. */
TARGET INLINE void K(quarter_iq4_xs)(const uint8_t *p, size_t n, const vi *fifths, int quarter, vi *v)
{
    (void) fifths;
    K(uneven)(p + 8 + 32 * quarter, n, v);
    K(uneven)(p + 24 + 32 * quarter, n, v + 8);
}

/* Of a half of 128 columns 16 of each 32: two bits of every byte. */
TARGET INLINE void K(quarter_q2_k)(const uint8_t *p, size_t n, const vi *upper, int quarter, vi *v)
{
    vi four[4];
    (void) upper;
    vi_columns(p + 16 + 16 * quarter, n, four);
    for (int g = 0; g < 4; g++) {
        for (int k = 0; k < 4; k++) {
            v[4 * k + g] = vi_and(vi_right(four[g], 2 * k), vi_bytes(3));
        }
    }
}

/* The bit `k` of every byte, as 4. */
#define THIRD(v, k) vi_and((k) < 2 ? vi_left(v, 2 - (k)) : vi_right(v, (k) - 2), vi_bytes(4))

TARGET INLINE void K(quarter_q3_k)(const uint8_t *p, size_t n, const vi *upper, int quarter, vi *v)
{
    K(quarter_q2_k)(p + 16, n, upper, quarter, v);
    for (int g = 0; g < 4; g++) {
        for (int k = 0; k < 4; k++) {
            v[4 * k + g] = vi_or(v[4 * k + g], THIRD(upper[4 * (quarter % 2) + g], 4 * (quarter / 2) + k));
        }
    }
}

/* The first columns of the four vectors v[4 * k] and on, of the sixteen of a quarter. */
#define PLACE_q4_k(quarter, k) (64 * (quarter) + 16 * (k))
#define PLACE_q5_k PLACE_q4_k
#define PLACE_iq4_xs PLACE_q4_k
#define PLACE_q6_k(quarter, k) (128 * ((quarter) / 2) + 16 * ((quarter) % 2) + 32 * (k))
#define PLACE_q2_k PLACE_q6_k
#define PLACE_q3_k PLACE_q6_k

/* Values times scales, where these are whole numbers. Two bytes are multiplied as one number of 16 bits: neither product
 * is above 255, so none reaches into the other. */

/* 45 at most. */
TARGET INLINE void K(scale_q2_k)(const struct K(scales) *scales, int block, vi *v)
{
    const vi scale = vi_and(vi_byte(scales->whole[block / 4], block % 4), vi_set(0x00FF00FF));
    for (int g = 0; g < 4; g++) {
        v[g] = vi_mul16(v[g], scale);
    }
}

/* -(q - 4) s is (7 - q) |s| - 3 |s| for positive s and q |s| - 4 |s| for others; to it WIDE_OFFSET is added. */
TARGET INLINE void K(scale_q3_k)(const struct K(scales) *scales, int block, vi *v)
{
    const vi scale = vi_byte(scales->whole[block / 4], block % 4), size = vi_abs8(scale);
    const vi negative = vi_right_signed(scale, 31), low = vi_and(size, vi_set(0x00FF00FF));
    const vi turned = vi_xor(vi_and(negative, vi_bytes(7)), vi_bytes(7));
    const vi three = vi_add8(size, vi_add8(size, size)), less = vi_add8(three, vi_and(size, negative));
    const vi added = vi_sub8(vi_bytes((char) WIDE_OFFSET), less);
    for (int g = 0; g < 4; g++) {
        v[g] = vi_add8(vi_mul16(vi_xor(v[g], turned), low), added);
    }
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

#define UNPACK_SCALED(name) \
    TARGET static void K(unpack_##name)(const uint8_t *p, size_t n, int n_columns, struct K(tile) *tile) \
    { \
        (void) n_columns; \
        vi upper[8]; \
        K(scales_##name)(p, n, &tile->scales, upper); \
        for (int quarter = 0; quarter < 4; quarter++) { \
            vi v[16]; \
            K(quarter_##name)(p, n, upper, quarter, v); \
            for (int k = 0; k < 4; k++) { \
                const int column = PLACE_##name(quarter, k); \
                K(scale_##name)(&tile->scales, column / 16, v + 4 * k); \
                for (int g = 0; g < 4; g++) { \
                    vi_store(tile->value[column / 4 + g], v[4 * k + g]); \
                } \
            } \
        } \
    }

UNPACK_256(q4_k)
UNPACK_256(q5_k)
UNPACK_256(q6_k)
UNPACK_256(iq4_xs)
UNPACK_SCALED(q2_k)
UNPACK_SCALED(q3_k)

#undef INLINE
#undef LOW
#undef NIBBLE
#undef FIFTH
#undef THIRD
#undef UNPACK_256
#undef UNPACK_SCALED
