# What simd/level.h declares and documents.
cdef extern from "simd/level.h" nogil:
    enum:
        SIMD_AVX512
        SIMD_AVX512_VNNI
