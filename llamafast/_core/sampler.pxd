from .dry cimport Breakers
from .pick cimport sampler_t, scratch_t

cdef class Sampler:
    cdef sampler_t state
    cdef scratch_t own_scratch  # of pick
    cdef bint counted
    cdef Breakers breakers
    cdef Sampler owner          # of what is shared; None: itself, or the garbage collector has been here
    cdef bint borrows           # what is shared is the owner's to free
