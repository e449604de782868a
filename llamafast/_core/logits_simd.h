/* The vector operations that logits_kernels.h is written in, for every instruction set, and the kernels made of them.
 * vpack(to, m, v) stores the lanes in m one after the other and returns how many, vpack_index does it with the lanes'
 * numbers from `first` on; both write a whole vector. vfraction(t) is t - floor(t), and vscale(m, p, t) is
 * p * 2^floor(t) in the lanes of m, else 0. vbits(v) are the floats whose bits are the integers next to
 * v, 0 for v < 0 and NaN. */

/* Baseline: four floats in the compilers' own notation, which is SSE2, NEON or whatever there is. */

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef float f4_memory __attribute__((vector_size(16), aligned(4), may_alias));

/* Adding it rounds |v| < 2^22 to an integer, which is then in the low bits of the sum. */
#define F4_ROUNDER f4_set(12582912.0f)
#define F4_FLOOR(t) ((t) - f4_set(0.5f) + F4_ROUNDER)

static inline f4 f4_load(const float *p) { return *(const f4_memory *) p; }
static inline void f4_store(float *p, f4 v) { *(f4_memory *) p = v; }
static inline f4 f4_set(float v) { return (f4) {v, v, v, v}; }
static inline f4 f4_and(i4 m, f4 v) { return (f4) (m & (i4) v); }

static inline f4 f4_max(f4 x, f4 y)
{
    i4 m = x > y;
    return (f4) ((m & (i4) x) | (~m & (i4) y));
}

static inline f4 f4_scale(i4 m, f4 p, f4 t)
{
    u4 integer = (u4) F4_FLOOR(t) - (u4) F4_ROUNDER;
    return f4_and(m, (f4) ((u4) p + (integer << 23)));
}

static inline float f4_hmax(f4 v)
{
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

static inline int32_t f4_pack(float *to, i4 m, f4 v)
{
    int32_t kept = 0;
    for (int lane = 0; lane < 4; lane++) {
        to[kept] = v[lane];
        kept -= m[lane];
    }
    return kept;
}

static inline void f4_pack_index(int32_t *to, i4 m, int32_t first)
{
    int32_t kept = 0;
    for (int lane = 0; lane < 4; lane++) {
        to[kept] = first + lane;
        kept -= m[lane];
    }
}

#define K(name) name##_baseline
#define TARGET
#define VL 4
#define vf f4
#define vm i4
#define vset f4_set
#define vload f4_load
#define vstore f4_store
#define vadd(a, b) ((a) + (b))
#define vsub(a, b) ((a) - (b))
#define vmul(a, b) ((a) * (b))
#define vfma(a, b, c) ((a) * (b) + (c))
#define vmax f4_max
#define vgt(a, b) ((a) > (b))
#define vge(a, b) ((a) >= (b))
#define vand f4_and
#define vfraction(t) ((t) - (F4_FLOOR(t) - F4_ROUNDER))
#define vscale f4_scale
#define vbits(v) ((f4) __builtin_convertvector(f4_max(v, f4_set(0)), i4))
#define vhmax f4_hmax
#define vhsum(v) (((v)[0] + (v)[1]) + ((v)[2] + (v)[3]))
#define vpack f4_pack
#define vpack_index f4_pack_index
#include "logits_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,popcnt")))

/* For every mask of eight lanes the lanes in it, one byte each; filled by f8_prepare. */
static uint64_t f8_lanes[256];

static void f8_prepare(void)
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
#include "logits_kernels.h"

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
#include "logits_kernels.h"

#endif
