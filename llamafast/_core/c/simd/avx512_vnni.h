/* Sixteen floats and sixteen integers: AVX-512 with byte masks and products of bytes. */
#include "avx512.h"

#undef K
#undef TARGET
#define K(name) name##_avx512_vnni
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,f16c,popcnt")))

TARGET static inline void i16_columns(const uint8_t *p, size_t n, __m512i *to)
{
    __m512i row[4];
    for (int r = 0; r < 4; r++) {
        const uint8_t *at = p + r * n;
        row[r] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) at));
        row[r] = _mm512_inserti32x4(row[r], _mm_loadu_si128((const __m128i *) (at + 4 * n)), 1);
        row[r] = _mm512_inserti32x4(row[r], _mm_loadu_si128((const __m128i *) (at + 8 * n)), 2);
        row[r] = _mm512_inserti32x4(row[r], _mm_loadu_si128((const __m128i *) (at + 12 * n)), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpackhi_epi32(row[0], row[1]);
    const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]), d = _mm512_unpackhi_epi32(row[2], row[3]);
    to[0] = _mm512_unpacklo_epi64(a, c);
    to[1] = _mm512_unpackhi_epi64(a, c);
    to[2] = _mm512_unpacklo_epi64(b, d);
    to[3] = _mm512_unpackhi_epi64(b, d);
}

TARGET static inline __m512i i16_byte(__m512i v, int k)
{
    const __m512i lanes = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C));
    return _mm512_shuffle_epi8(v, _mm512_add_epi8(lanes, _mm512_set1_epi8((char) k)));
}

/* Bytes are moved to the upper halves of words, which keeps their signs. */
TARGET static inline __m512i i16_words(__m512i v, int k)
{
    const __m512i lanes = _mm512_broadcast_i32x4(_mm_setr_epi32(0x01000000, 0x05040404, 0x09080808, 0x0D0C0C0C));
    return _mm512_srai_epi16(_mm512_shuffle_epi8(v, _mm512_add_epi8(lanes, _mm512_set1_epi8((char) k))), 8);
}

TARGET static inline __m512i i16_fifths(__m512i bits, int g)
{
    const __m512i byte = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C)),
        _mm512_set1_epi8((char) (g / 2)));
    const __m512i bit = _mm512_set1_epi32(g & 1 ? (int32_t) 0x80402010 : 0x08040201);
    return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, byte), bit), 16);
}

#define vhalf_of(x) _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)))
#define vbrain(p) _mm512_castsi512_ps( \
    _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (p))), 16))
#define vi __m512i
#define WIDE_OFFSET 128
#define vi_set _mm512_set1_epi32
#define vi_bytes _mm512_set1_epi8
#define vi_load _mm512_loadu_si512
#define vi_store _mm512_storeu_si512
#define vi_add _mm512_add_epi32
#define vi_sub _mm512_sub_epi32
#define vi_max _mm512_max_epi32
#define vi_add8 _mm512_add_epi8
#define vi_sub8 _mm512_sub_epi8
#define vi_abs8 _mm512_abs_epi8
#define vi_mul16 _mm512_mullo_epi16
#define vi_and _mm512_and_si512
#define vi_or _mm512_or_si512
#define vi_xor _mm512_xor_si512
#define vi_left _mm512_slli_epi32
#define vi_right _mm512_srli_epi32
#define vi_right_signed _mm512_srai_epi32
#define vi_float _mm512_cvtepi32_ps
#define vi_bits_float _mm512_castsi512_ps
#define vi_halves(v) _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v))
#define vi_round _mm512_cvtps_epi32
#define vi_pack(p, v) _mm_storeu_si128((__m128i *) (p), _mm512_cvtsepi32_epi8(v))
#define vi_sum _mm512_reduce_add_epi32
#define vi_dots(n, sum, u, s) _mm512_dpbusd_epi32(sum, (u)[0], (s)[0])
#define DOTS_OF_31 1
#define vi_dot_wide _mm512_dpbusd_epi32
#define vi_dot_pairs _mm512_dpwssd_epi32
#define vi_columns i16_columns
#define vi_lookup(p, i) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) (p))), i)
#define vi_byte i16_byte
#define vi_words i16_words
#define vi_pairs(a, b) _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_slli_epi32(b, 16))
#define vi_fifths i16_fifths
