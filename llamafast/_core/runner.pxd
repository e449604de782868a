from .live cimport live_t
from .sequence cimport Sequence
from .step cimport Step

cdef class Runner:
    cdef Step step
    cdef live_t *live                           # the step's
    cdef int attention                          # atomic
    cdef list running                           # Sequences in order of admission; ``live`` has the same
    cdef list free_seq_ids

    cdef void _let_go(self, Sequence sequence)
