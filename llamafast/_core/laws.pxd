# The one check of the laws of sequences.
from .live cimport live_t

cdef str broken_law(const live_t *self)
