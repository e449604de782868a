# The loop of steps, and who holds those that run.
from .live cimport live_t
from .step cimport Step

# Whoever is in ``live`` is held: with one reference to its Sequence.
cdef class Runner:
    cdef Step step
    cdef live_t *live       # the step's
    cdef int attention      # atomic
    cdef readonly bint idled    # nobody had a row to compute when the last run ended
