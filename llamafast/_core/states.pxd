# The radix tree of saved prefixes: its nodes and the states that hang there.
from cpython.array cimport array
from libc.stdint cimport int32_t, int64_t

cdef class Node:
    cdef Node parent                    # None for the root of a salt
    cdef object key                     # its place in parent.children; of a root the salt
    cdef int32_t start
    cdef array tokens
    cdef dict children
    cdef list states

cdef class State:
    cdef Node node
    cdef readonly object saved          # bytes or a memoryview
    cdef readonly State base
    cdef readonly int32_t start, stop, spares
    cdef readonly int64_t n_bytes
    cdef public int64_t n_heirs, uses
    cdef public double priority
    cdef public bint waits
    cdef public object entry            # where it is kept beside host memory, by whoever does that

cdef class PrefixTree:
    cdef dict roots                     # by salt

    cdef Node descend(self, array tokens, bytes salt, int32_t length, int32_t *end)
