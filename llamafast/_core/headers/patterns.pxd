# What patterns.h declares and documents.
from .llama cimport c_bool

cdef extern from "patterns.h" nogil:
    c_bool patterns_search(
        const char *pattern, const char *const *names, size_t n, c_bool *found, char *fault, size_t fault_size)
