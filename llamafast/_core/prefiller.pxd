# Prompts computed apart, in slices: whose turn it is.
from libc.stdint cimport int32_t

from .context cimport Batch, Context
from .headers.pthread cimport pthread_cond_t, pthread_mutex_t

# Whose turn it is to compute.
cdef struct turn_t:
    pthread_mutex_t lock
    pthread_cond_t passed
    bint working                # llama_decode has a batch to compute, and nobody else may touch the context
    bint granted                # it may compute; else it waits, between two nodes of its graph
    bint aborting               # the batch is given up
    bint closing
    double until                # when it gives the turn back, monotonic seconds

cdef class Prefiller:
    cdef Context context
    cdef Batch batch
    cdef turn_t turn
    cdef bint ready             # lock and condition exist
    cdef readonly int32_t code          # llama_decode's, of the last batch
    cdef readonly double seconds        # that computing the last batch took

cdef double prefiller_slice(Prefiller self, double seconds) noexcept nogil
cdef float *prefiller_logits(Prefiller self, int32_t row) noexcept nogil
