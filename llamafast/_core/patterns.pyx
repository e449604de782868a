"""Which tensors a pattern of llama.cpp's overrides means."""
from libc.stdlib cimport calloc, free

from .headers.llama cimport c_bool
from .headers.patterns cimport patterns_search


def names_with(str pattern not None, names not None):
    """Those of ``names`` that ``pattern``, an ECMAScript one, is found in, in their order. Raises ValueError for what
    is no pattern."""
    cdef bytes raw = pattern.encode()
    cdef const char *c_pattern = raw
    cdef list texts = [name.encode() for name in names]
    cdef size_t i, n = <size_t> len(texts)
    cdef const char **c_names = <const char **> calloc(n + 1, sizeof(char *))
    cdef c_bool *found = <c_bool *> calloc(n + 1, sizeof(c_bool))
    cdef char[256] fault
    cdef c_bool known
    try:
        if c_names == NULL or found == NULL:
            raise MemoryError
        for i in range(n):
            c_names[i] = <const char *> texts[i]
        with nogil:
            known = patterns_search(c_pattern, c_names, n, found, fault, sizeof(fault))
        if not known:
            raise ValueError(fault.decode("utf-8", "replace"))
        return [name for i, name in enumerate(names) if found[i]]
    finally:
        free(c_names)
        free(found)
