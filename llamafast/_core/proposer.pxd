# A model that drafts beside another one: a head of that one's own, or a small model.
from libc.stdint cimport int32_t, int64_t

from .context cimport Context
from .headers.llama cimport llama_batch, llama_context, llama_memory_t
from .live cimport live_t
from .model cimport Model
from .sequence cimport sequence_t

cdef enum:
    NEAR = 32               # rows that a call computes besides; for who lacks more nobody drafts
    RESTS = 256             # who does not pay is asked all the same once in so many steps

cdef class Proposer:
    cdef Context target
    cdef Model model
    cdef llama_context *ctx
    cdef llama_memory_t memory
    cdef llama_batch batch
    cdef int32_t capacity       # rows of a batch
    cdef int32_t n_vocab        # tokens that it may draft: those of both vocabularies
    cdef int32_t n_seq_max
    cdef int32_t n_free         # rows that its memory has room for
    cdef float least            # of a token's probability, for it to be drafted
    # A call takes about fixed seconds, and per_row for each row with logits or per_fed for one without.
    cdef double fixed
    cdef double per_row
    cdef double per_fed
    cdef int32_t rested         # steps since it was asked for anything, of those in which it could have been
    # Seconds that its calls and filling its memory have cost, less those that its drafts have saved; and those of the
    # steps in which memory lacked something.
    cdef double spent
    cdef double stepped
    cdef int64_t failures
    cdef int64_t calls
    cdef int64_t rows_fed

    # What each kind has of its own.
    cdef int32_t behind(self, const sequence_t *s) noexcept nogil
    cdef void begin(self, sequence_t *s, int32_t room) noexcept nogil
    cdef void extend(self, sequence_t *s, int32_t row) noexcept nogil
    cdef void end(self, sequence_t *s) noexcept nogil
    cdef int32_t decode(self) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef int32_t fill(self, const sequence_t *s, int32_t room) noexcept nogil
    cdef void make_room(self, const live_t *live) noexcept nogil

cdef void proposer_row(Proposer self, int32_t token, int32_t position, int32_t seq_id, bint output) noexcept nogil
cdef double proposer_seconds(Proposer self, int32_t n, int32_t most, int32_t n_fed) noexcept nogil
cdef int proposer_draft(
    Proposer self, sequence_t **drafting, const int32_t *lengths, int32_t n, int32_t n_fed
) noexcept nogil
cdef int32_t proposer_fill(Proposer self, sequence_t **filling, int32_t n, int32_t room, double *seconds) noexcept nogil
