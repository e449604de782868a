# A head that drafts: the layers of a model that say the token after the next (NextN, MTP).
from libc.stdint cimport int32_t, int64_t

from .context cimport Context
from .headers.llama cimport llama_batch, llama_context, llama_memory_t
from .model cimport Model
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

cdef class Head:
    cdef Context target
    cdef Model model
    cdef llama_context *ctx
    cdef llama_memory_t memory
    cdef llama_batch batch
    cdef int32_t capacity       # rows of a batch
    cdef int32_t n_vocab
    cdef int32_t width          # floats of a hidden row
    cdef int32_t n_seq_max
    cdef headed_t *headed       # (n_seq_max,)
    cdef float *rows            # (n_seq_max, KEPT, width)
    cdef float least            # of a token's probability, for it to be drafted
    cdef double fixed           # a call takes about fixed + per_row * rows seconds
    cdef double per_row
    cdef int64_t failures
    cdef int64_t calls
    cdef int64_t rows_fed

cdef void head_keep(Head self, const sequence_t *s, int32_t first, int32_t row, int32_t n) noexcept nogil
cdef bint head_knows(Head self, const sequence_t *s) noexcept nogil
cdef double head_seconds(Head self, int32_t n, int32_t most) noexcept nogil
cdef int head_draft(Head self, sequence_t **drafting, int32_t n, int32_t most) noexcept nogil
