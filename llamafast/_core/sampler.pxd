from .pick cimport sampler_t, scratch_t

cdef class Sampler:
    cdef sampler_t state
    cdef bint counted
    cdef scratch_t own_scratch  # of pick
