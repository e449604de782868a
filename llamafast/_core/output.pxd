# From a row of logits to staged text: what chooses tokens and ends sequences.
from .context cimport Context
from .draw cimport scratch_t
from .masks cimport Masker
from .outbox cimport Outbox
from .sequence cimport sequence_t
from .vocab cimport Vocab

cdef class Output:
    cdef Context context
    cdef Vocab vocab
    cdef Outbox outbox
    cdef Masker masker
    cdef scratch_t scratch

cdef void output_halt(sequence_t *s) noexcept nogil

# All: 0, or -1 when out of memory; the last 1 where llama.cpp has no logits.
cdef bint output_heard(const sequence_t *s) noexcept nogil
cdef int output_begun(Output self, sequence_t *s) noexcept nogil
cdef int output_next(Output self, sequence_t *s, float *logits) noexcept nogil
cdef int output_score(Output self, sequence_t *s) noexcept nogil
