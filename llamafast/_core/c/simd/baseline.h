/* Four floats in the compilers' own notation, which is SSE2, NEON or whatever there is. */
#include "undefine.h"

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

/* The halves' exponents and mantissas, moved to where a float has them, are 2^112 times too small. */
static inline f4 f4_half(const uint16_t *p)
{
    const u4 half = {p[0], p[1], p[2], p[3]};
    const f4 magnitude = (f4) ((half & 0x7FFF) << 13) * f4_set(0x1p112f);
    const u4 infinite = (u4) ((half & 0x7C00) == 0x7C00) & 0x7F800000;
    return (f4) ((u4) magnitude | infinite | (half & 0x8000) << 16);
}

static inline void f4_sum4(float *to, const f4 *v)
{
    for (int i = 0; i < 4; i++) {
        to[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
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
#define vlanes(bits) (((i4) {1, 2, 4, 8} & (int32_t) (bits)) != 0)
#define vselect(m, a, b) ((f4) (((m) & (i4) (a)) | (~(m) & (i4) (b))))
#define vhalf f4_half
#define vsum4 f4_sum4
#include "exp2.h"
