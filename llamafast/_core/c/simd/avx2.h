/* Eight floats. f8_prepare comes before vpack and vpack_index. */
#include "undefine.h"

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,f16c,fma,popcnt")))

/* For every mask of eight lanes the lanes in it, one byte each; filled by f8_prepare. */
static uint64_t f8_lanes[256];

static inline void f8_prepare(void)
{
    for (int m = 0; m < 256; m++) {
        uint64_t lanes = 0;
        for (int lane = 7; lane >= 0; lane--) {
            lanes = m >> lane & 1 ? lanes << 8 | (uint64_t) lane : lanes;
        }
        f8_lanes[m] = lanes;
    }
}

TARGET static inline __m256i f8_order(int bits)
{
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t) f8_lanes[bits]));
}

TARGET static inline int32_t f8_pack(float *to, __m256 m, __m256 v)
{
    const int bits = _mm256_movemask_ps(m);
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(v, f8_order(bits)));
    return __builtin_popcount((unsigned) bits);
}

TARGET static inline void f8_pack_index(int32_t *to, __m256 m, int32_t first)
{
    const __m256i order = f8_order(_mm256_movemask_ps(m));
    _mm256_storeu_si256((__m256i *) to, _mm256_add_epi32(order, _mm256_set1_epi32(first)));
}

TARGET static inline __m256 f8_scale(__m256 m, __m256 p, __m256 t)
{
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(t)), 23);
    return _mm256_and_ps(m, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent)));
}

TARGET static inline float f8_hmax(__m256 v)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

TARGET static inline float f8_hsum(__m256 v)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

TARGET static inline __m256 f8_bits(uint32_t bits)
{
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int) bits), lanes), lanes));
}

TARGET static inline void f8_sum4(float *to, const __m256 *v)
{
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

/* A sum is complete before the next one is begun: left to itself the compiler puts all of them off, and runs out of
 * registers. */
TARGET static inline __attribute__((always_inline)) __m256i i8_added(__m256i sum, __m256i halves)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(halves, _mm256_set1_epi16(1)));
    __asm__("" : "+x"(sum));
    return sum;
}

TARGET static inline __m256i i8_dot(__m256i sum, __m256i u, __m256i s)
{
    return i8_added(sum, _mm256_maddubs_epi16(u, s));
}

TARGET static inline __attribute__((always_inline)) __m256i i8_dots(
    int n, __m256i sum, const __m256i *u, const __m256i *s)
{
    __m256i halves = _mm256_maddubs_epi16(u[0], s[0]);
    for (int k = 1; k < n; k++) {
        halves = _mm256_add_epi16(halves, _mm256_maddubs_epi16(u[k], s[k]));
    }
    return i8_added(sum, halves);
}

TARGET static inline void i8_columns(const uint8_t *p, size_t n, __m256i *to)
{
    __m256i row[4];
    for (int r = 0; r < 4; r++) {
        row[r] = _mm256_loadu2_m128i((const __m128i *) (p + (r + 4) * n), (const __m128i *) (p + r * n));
    }
    const __m256i a = _mm256_unpacklo_epi32(row[0], row[1]), b = _mm256_unpackhi_epi32(row[0], row[1]);
    const __m256i c = _mm256_unpacklo_epi32(row[2], row[3]), d = _mm256_unpackhi_epi32(row[2], row[3]);
    to[0] = _mm256_unpacklo_epi64(a, c);
    to[1] = _mm256_unpackhi_epi64(a, c);
    to[2] = _mm256_unpacklo_epi64(b, d);
    to[3] = _mm256_unpackhi_epi64(b, d);
}

TARGET static inline __m256i i8_fifths(__m256i bits, int g)
{
    const __m256i byte = _mm256_add_epi8(
        _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C, 0, 0x04040404, 0x08080808, 0x0C0C0C0C),
        _mm256_set1_epi8((char) (g / 2)));
    const __m256i bit = _mm256_set1_epi32(g & 1 ? (int32_t) 0x80402010 : 0x08040201);
    const __m256i found = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, byte), bit), bit);
    return _mm256_and_si256(found, _mm256_set1_epi8(16));
}

TARGET static inline __m256i i8_byte(__m256i v, int k)
{
    const __m256i lanes = _mm256_setr_epi32(
        0, 0x04040404, 0x08080808, 0x0C0C0C0C, 0, 0x04040404, 0x08080808, 0x0C0C0C0C);
    return _mm256_shuffle_epi8(v, _mm256_add_epi8(lanes, _mm256_set1_epi8((char) k)));
}

/* Bytes are moved to the upper halves of words, which keeps their signs. */
TARGET static inline __m256i i8_words(__m256i v, int k)
{
    const __m256i lanes = _mm256_setr_epi32(
        0x01000000, 0x05040404, 0x09080808, 0x0D0C0C0C, 0x01000000, 0x05040404, 0x09080808, 0x0D0C0C0C);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, _mm256_add_epi8(lanes, _mm256_set1_epi8((char) k))), 8);
}

TARGET static inline __m256 i8_halves(__m256i v)
{
    const __m256i half = _mm256_and_si256(v, _mm256_set1_epi32(0xFFFF));
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

TARGET static inline void i8_pack(int8_t *to, __m256i v)
{
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *) to, _mm_packs_epi16(words, words));
}

TARGET static inline int32_t i8_sum(__m256i v)
{
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xB1)));
}

#define K(name) name##_avx2
#define VL 8
#define vf __m256
#define vm __m256
#define vset _mm256_set1_ps
#define vload _mm256_loadu_ps
#define vstore _mm256_storeu_ps
#define vadd _mm256_add_ps
#define vsub _mm256_sub_ps
#define vmul _mm256_mul_ps
#define vfma _mm256_fmadd_ps
#define vmax _mm256_max_ps
#define vgt(a, b) _mm256_cmp_ps(a, b, _CMP_GT_OQ)
#define vge(a, b) _mm256_cmp_ps(a, b, _CMP_GE_OQ)
#define vand _mm256_and_ps
#define vfraction(t) _mm256_sub_ps(t, _mm256_floor_ps(t))
#define vscale f8_scale
#define vbits(v) _mm256_castsi256_ps(_mm256_max_epi32(_mm256_cvtps_epi32(v), _mm256_setzero_si256()))
#define vhmax f8_hmax
#define vhsum f8_hsum
#define vpack f8_pack
#define vpack_index f8_pack_index
#define vlanes f8_bits
#define vselect(m, a, b) _mm256_blendv_ps(b, a, m)
#define vhalf(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (p)))
#define vsum4 f8_sum4
#define vhalf_of(x) _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)))
#define vbrain(p) _mm256_castsi256_ps( \
    _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) (p))), 16))
#define vi __m256i
#define WIDE_OFFSET 0
#define vi_set _mm256_set1_epi32
#define vi_bytes _mm256_set1_epi8
#define vi_load(p) _mm256_loadu_si256((const __m256i *) (p))
#define vi_store(p, v) _mm256_storeu_si256((__m256i *) (p), v)
#define vi_add _mm256_add_epi32
#define vi_sub _mm256_sub_epi32
#define vi_max _mm256_max_epi32
#define vi_add8 _mm256_add_epi8
#define vi_sub8 _mm256_sub_epi8
#define vi_abs8 _mm256_abs_epi8
#define vi_mul16 _mm256_mullo_epi16
#define vi_and _mm256_and_si256
#define vi_or _mm256_or_si256
#define vi_xor _mm256_xor_si256
#define vi_left _mm256_slli_epi32
#define vi_right _mm256_srli_epi32
#define vi_right_signed _mm256_srai_epi32
#define vi_float _mm256_cvtepi32_ps
#define vi_bits_float _mm256_castsi256_ps
#define vi_halves i8_halves
#define vi_round _mm256_cvtps_epi32
#define vi_pack i8_pack
#define vi_sum i8_sum
#define vi_dots i8_dots
#define DOTS_OF_31 4
#define vi_dot_wide(sum, w, s) i8_dot(sum, _mm256_sign_epi8(w, w), _mm256_sign_epi8(s, w))
#define vi_dot_pairs(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define vi_columns i8_columns
#define vi_lookup(p, i) _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (p))), i)
#define vi_byte i8_byte
#define vi_words i8_words
#define vi_pairs(a, b) _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA)
#define vi_fifths i8_fifths
#include "exp2.h"
