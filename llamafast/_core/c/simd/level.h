/* Vector operations for several instruction sets. Kernels are written once, in a header that is included after that of
 * each instruction set (baseline.h, avx2.h, avx512.h), which defines
 *   K(name)   the name with the instruction set's suffix
 *   TARGET    the attribute that lets a function use the instruction set
 *   vf, vm    a vector of VL floats, a mask of its lanes
 * and operations on them. Comparisons with NaN are false, and vmax(x, y) is y when x is NaN. vpack(to, m, v) stores the
 * lanes in m one after the other and returns how many, vpack_index does it with the lanes' numbers from `first` on; both
 * write a whole vector. vfraction(t) is t - floor(t), and vscale(m, p, t) is p * 2^floor(t) in the lanes of m, else 0.
 * vbits(v) are the floats whose bits are the integers next to v, 0 for v < 0 and NaN. vlanes(bits) is a mask from the
 * lowest bits, and vselect(m, a, b) is a in the lanes of m, else b. vhalf(p) are VL floats from 16-bit ones, vsum4(to, v)
 * are the sums of four vectors' lanes. */
#ifndef LLAMAFAST_SIMD_LEVEL_H
#define LLAMAFAST_SIMD_LEVEL_H

/* Instruction sets, each one a superset of those before it. */
enum { SIMD_BASELINE, SIMD_AVX2, SIMD_AVX512 };

/* The best one that the processor has and that is not above `limit`. */
static inline int simd_level(int limit)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    /* F16C came before AVX2 and FMA, and not all compilers know its name here */
    if (limit >= SIMD_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("popcnt")) {
        return limit >= SIMD_AVX512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
            ? SIMD_AVX512 : SIMD_AVX2;
    }
#endif
    return SIMD_BASELINE;
}

#endif
