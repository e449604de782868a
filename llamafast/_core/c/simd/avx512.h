/* Sixteen floats. */
#include "undefine.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512dq,popcnt")))

TARGET static inline int32_t f16_pack(float *to, __mmask16 m, __m512 v)
{
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(m, v));
    return __builtin_popcount(m);
}

TARGET static inline void f16_pack_index(int32_t *to, __mmask16 m, int32_t first)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(m, _mm512_add_epi32(lanes, _mm512_set1_epi32(first))));
}

TARGET static inline void f16_sum4(float *to, const __m512 *v)
{
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#define K(name) name##_avx512
#define VL 16
#define vf __m512
#define vm __mmask16
#define vset _mm512_set1_ps
#define vload _mm512_loadu_ps
#define vstore _mm512_storeu_ps
#define vadd _mm512_add_ps
#define vsub _mm512_sub_ps
#define vmul _mm512_mul_ps
#define vfma _mm512_fmadd_ps
#define vmax _mm512_max_ps
#define vgt(a, b) _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)
#define vge(a, b) _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ)
#define vand _mm512_maskz_mov_ps
#define vfraction(t) _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
#define vscale _mm512_maskz_scalef_ps
#define vbits(v) _mm512_castsi512_ps(_mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512()))
#define vhmax _mm512_reduce_max_ps
#define vhsum _mm512_reduce_add_ps
#define vpack f16_pack
#define vpack_index f16_pack_index
#define vlanes(bits) ((__mmask16) (bits))
#define vselect(m, a, b) _mm512_mask_blend_ps(m, b, a)
#define vhalf(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (p)))
#define vsum4 f16_sum4
#include "exp2.h"
