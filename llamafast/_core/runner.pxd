from .sequence cimport Sequence
from .stepper cimport Stepper

cdef class Runner(Stepper):
    cdef list running                           # Sequences in order of admission; ``live`` has the same
    cdef list free_seq_ids

    cdef void _let_go(self, Sequence sequence)
