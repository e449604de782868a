# A sequence's sampler, and the choice of its next token.
from libc.stdint cimport int32_t

from .draw cimport sampler_t, scratch_t
from .dry cimport Breakers
from .infill cimport Infill

cdef class Sampler:
    cdef sampler_t state
    cdef scratch_t own_scratch  # of pick
    cdef bint counted
    cdef Breakers breakers
    cdef Infill infill
    cdef Sampler owner          # of what is shared; None: itself, or the garbage collector has been here
    cdef bint borrows           # what is shared is the owner's to free

# The token that follows history[:n_history], or -1 when out of memory or when the scratch is for a smaller vocabulary.
# row is (n_vocab,) and is edited in place. Between two calls the history may grow, and shrink and change within its
# last RECENT tokens.
cdef int32_t sampler_pick(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil
