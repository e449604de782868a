# What zero_pages.h declares and documents.
from libc.stdint cimport int64_t

cdef extern from "zero_pages.h" nogil:
    int64_t zero_pages_release(void *base, size_t size)
