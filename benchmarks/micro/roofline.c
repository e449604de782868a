/* What a core can do at most: products of bytes in registers, and reading memory. Both run for about `seconds`. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

static volatile int32_t sink;

/* Operations a second, two for each multiply-add of bytes; 0 where the processor has no instruction for four of them. */
__attribute__((target("avx512f,avx512vnni"))) static double peak_512(double seconds)
{
    __m512i sum[16], a = _mm512_set1_epi32((int) thread_seconds()), b = _mm512_set1_epi32(3);
    double n = 0, begin = thread_seconds();
    for (int i = 0; i < 16; i++) {
        sum[i] = _mm512_setzero_si512();
    }
    while (thread_seconds() - begin < seconds) {
        for (int k = 0; k < 10000; k++) {
            for (int i = 0; i < 16; i++) {
                sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
            }
            __asm__ volatile("" : "+v"(a));
        }
        n += 10000. * 16 * 64 * 2;
    }
    for (int i = 0; i < 16; i++) {
        sink += _mm512_reduce_add_epi32(sum[i]);
    }
    return n / (thread_seconds() - begin);
}

__attribute__((target("avx2"))) static inline __m256i opaque(__m256i a)
{
    __asm__ volatile("" : "+x"(a));
    return a;
}

/* Without such an instruction: of any signed bytes, whose products take signs and are widened at once; or, where `narrow`,
 * of bytes up to 31 with signed ones, of which four sums fit into 16 bits. */
__attribute__((target("avx2"))) static double peak_256(double seconds, int narrow)
{
    __m256i sum[8], a = _mm256_set1_epi32((int) thread_seconds()), b = _mm256_set1_epi32(3);
    const __m256i ones = _mm256_set1_epi16(1);
    double n = 0, begin = thread_seconds();
    for (int i = 0; i < 8; i++) {
        sum[i] = _mm256_setzero_si256();
    }
    while (thread_seconds() - begin < seconds) {
        for (int k = 0; k < 10000; k++) {
            for (int i = 0; i < 8; i++) {
                __m256i halves = _mm256_maddubs_epi16(a, narrow ? b : _mm256_sign_epi8(b, opaque(a)));
                for (int part = 1; narrow && part < 4; part++) {
                    halves = _mm256_add_epi16(halves, _mm256_maddubs_epi16(opaque(a), b));
                }
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(halves, ones));
            }
            a = opaque(a);
        }
        n += 10000. * 8 * (narrow ? 4 : 1) * 32 * 2;
    }
    for (int i = 0; i < 8; i++) {
        sink += _mm256_extract_epi32(sum[i], 0);
    }
    return n / (thread_seconds() - begin);
}

double peak(double seconds, int narrow)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") ? peak_512(seconds) : peak_256(seconds, narrow);
}

/* Bytes a second that one core reads of `size` bytes in memory. */
double bandwidth(const uint64_t *memory, size_t size, double seconds)
{
    double n = 0, begin = thread_seconds();
    uint64_t sum[8] = {0};
    while (thread_seconds() - begin < seconds) {
        for (size_t i = 0; i + 8 <= size / 8; i += 8) {
            __builtin_prefetch(memory + i + 512);
            for (int k = 0; k < 8; k++) {
                sum[k] += memory[i + k];
            }
        }
        n += (double) size;
    }
    for (int k = 0; k < 8; k++) {
        sink += (int32_t) sum[k];
    }
    return n / (thread_seconds() - begin);
}
