"""Which instruction sets the C code may use: all that the processor has, or those up to what ``LLAMAFAST_SIMD`` names.
"""
import os

from .headers.simd cimport SIMD_AVX512_BF16, simd_level

# in the order of c/simd/level.h
NAMES = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16")

cdef int limit = SIMD_AVX512_BF16
cdef str named = os.environ.get("LLAMAFAST_SIMD", "")
if named:
    if named not in NAMES:
        raise ImportError(f"LLAMAFAST_SIMD={named}: expected {', '.join(NAMES)}")
    limit = NAMES.index(named)


cdef int simd_limit() noexcept:
    return limit


def instruction_set():
    """The name of the best one in use."""
    return NAMES[simd_level(limit)]
