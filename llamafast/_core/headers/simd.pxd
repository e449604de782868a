# What simd/level.h declares and documents.
cdef extern from "simd/level.h" nogil:
    enum:
        SIMD_AVX2
        SIMD_AVX512_BF16
    int simd_level(int limit)
