# What simd/level.h declares and documents.
cdef extern from "simd/level.h" nogil:
    enum:
        SIMD_AVX512
