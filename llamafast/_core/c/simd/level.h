/* Vector operations for several instruction sets. Kernels are written once, in a header that is included after that of
 * each instruction set (baseline.h, avx2.h, avx512.h, avx512_vnni.h), which defines
 *   K(name)   the name with the instruction set's suffix
 *   TARGET    the attribute that lets a function use the instruction set
 *   vf, vm    a vector of VL floats, a mask of its lanes
 * and operations on them. Comparisons with NaN are false, and vmax(x, y) is y when x is NaN. vpack(to, m, v) stores the
 * lanes in m one after the other and returns how many, vpack_index does it with the lanes' numbers from `first` on; both
 * write a whole vector. vfraction(t) is t - floor(t), and vscale(m, p, t) is p * 2^floor(t) in the lanes of m, else 0.
 * vbits(v) are the floats whose bits are the integers next to v, 0 for v < 0 and NaN. vlanes(bits) is a mask from the
 * lowest bits, and vselect(m, a, b) is a in the lanes of m, else b. vhalf(p) are VL floats from 16-bit ones, vsum4(to, v)
 * are the sums of four vectors' lanes.
 *
 * avx2.h and avx512_vnni.h have vhalf_of(x), the 16-bit float next to x as a float, vbrain(p), VL floats from their upper
 * halves, and operations on vi, a vector of VL integers of 32 bits, or of 4 * VL bytes:
 *   vi_dots(n, sum, u, s)    adds to each lane the products of its four bytes, unsigned (63 at most) with signed, of n
 *                            vectors each: where these are best added up in 16 bits first, DOTS_OF_31 of bytes up to 31 and
 *                            half as many of bytes up to 63, else 1
 *   vi_dot_wide(sum, w, s)   of bytes of any size: w are signed ones to which WIDE_OFFSET was added
 *   vi_dot_pairs(sum, a, b)  of the two signed 16-bit halves
 *   vi_columns(p, n, to)     to[g] has in lane r the bytes 4g to 4g + 3 of the 16 at p + r * n
 *   vi_lookup(p, i)          bytes of the 16 at p, by the low four bits of those in i, which are below 128
 *   vi_fifths(bits, g)       bytes of 16 where the lane's bits 4g to 4g + 3 are set, else of 0
 *   vi_byte(v, k)            the lane's byte k in all four; vi_words(v, k): its signed bytes k and k + 1 as 16-bit halves
 *   vi_pairs(a, b)           the low halves of the lanes of a, and above them those of b
 *   vi_add8, vi_sub8, vi_abs8  of bytes; vi_mul16(a, b): low 16 bits of the products of 16-bit halves
 *   vi_bits_float(v)         the floats whose bits the lanes are
 *   vi_halves(v)             floats from the low 16 bits of the lanes
 *   vi_round(v)              integers next to floats, to even from the middle; vi_pack stores them as VL bytes */
#ifndef LLAMAFAST_SIMD_LEVEL_H
#define LLAMAFAST_SIMD_LEVEL_H

/* Instruction sets, each one a superset of those before it. There are no vectors for the last: what multiplies BF16 is
 * written with it (product_brains.h). */
enum { SIMD_BASELINE, SIMD_AVX2, SIMD_AVX512, SIMD_AVX512_VNNI, SIMD_AVX512_BF16 };

/* The best one that the processor has and that is not above `limit`. */
static inline int simd_level(int limit)
{
    int level = SIMD_BASELINE;
#if defined(__x86_64__)
    __builtin_cpu_init();
    /* F16C came before AVX2 and FMA, and not all compilers know its name here */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt")) {
        level = SIMD_AVX2;
    }
    if (level == SIMD_AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        level = SIMD_AVX512;
    }
    if (level == SIMD_AVX512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni")) {
        level = SIMD_AVX512_VNNI;
    }
    if (level == SIMD_AVX512_VNNI && __builtin_cpu_supports("avx512bf16")) {
        level = SIMD_AVX512_BF16;
    }
#endif
    return level < limit ? level : limit;
}

#endif
