from .constraint cimport Masker
from .context cimport Context
from .outbox cimport Outbox
from .pick cimport scratch_t
from .sequence cimport sequence_t
from .vocab cimport Vocab

cdef class Chooser:
    cdef Context context
    cdef Vocab vocab
    cdef Outbox outbox
    cdef Masker masker
    cdef scratch_t scratch

# Both: 0, or -1 when out of memory.
cdef int chooser_next(Chooser self, sequence_t *s, float *logits) noexcept nogil
cdef int chooser_score(Chooser self, sequence_t *s) noexcept nogil
