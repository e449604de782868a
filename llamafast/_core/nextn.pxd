# A head that drafts: the layers of a model that say the token after the next (NextN, MTP).
from libc.stdint cimport int32_t, int64_t

from .proposer cimport Proposer
from .sequence cimport sequence_t

cdef enum:
    KEPT = 32               # hidden rows of a sequence

# What the head has of a sequence id.
cdef struct headed_t:
    int64_t tag             # whose it is; who comes later begins anew
    int32_t n_runs
    int32_t n_past          # tokens up to here are in the head's memory, from wherever it began
    int32_t first           # of its tokens, the one whose hidden row is the first kept
    int32_t n_rows

cdef class Head(Proposer):
    cdef int32_t width          # floats of a hidden row
    cdef headed_t *headed       # (n_seq_max,)
    cdef float *rows            # (n_seq_max, KEPT, width)

cdef void head_keep(Head self, const sequence_t *s, int32_t first, int32_t row, int32_t n) noexcept nogil
