# The best instruction set, of c/simd/level.h, that C code may use.
cdef int simd_limit() noexcept
