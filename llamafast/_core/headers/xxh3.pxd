# What xxh3.h declares and documents.
from libc.stdint cimport uint64_t

cdef extern from "xxh3.h" nogil:
    enum:
        XXH3_WORDS
    uint64_t xxh3_72_bytes(const uint64_t *words)
