# What was answered lately, to anybody: a ring of tokens, apart by salt.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from .draft cimport proposal_t
from .sequence cimport sequence_t

# An answer, or the end of a long one. Its salt says who may be told.
cdef struct answer_t:
    uint32_t first          # of its tokens, counted from the start of time, as far as 32 bits count
    char *salt              # (n_salt,) bytes
    Py_ssize_t n_salt

cdef struct answers_t:
    uint32_t capacity       # tokens, a power of two; 0: nothing is kept
    uint32_t n              # tokens that were ever kept
    int32_t *tokens         # (capacity,) a ring, each answer behind an END
    uint32_t *before        # (capacity,) the token whose gram has the same hash, before each
    uint32_t *heads         # (capacity,) by hash: behind the last one of it
    answer_t *answers       # (n_places,) a ring, by where they begin
    int32_t n_places
    int32_t oldest
    int32_t n_answers
    int64_t salt_bytes
    int64_t salt_room       # what those may come to

cdef int answers_init(answers_t *self, int64_t n_bytes) noexcept nogil
cdef void answers_free(answers_t *self) noexcept nogil
cdef void answers_clear(answers_t *self) noexcept nogil
cdef int64_t answers_size(const answers_t *self) noexcept nogil
cdef void answers_keep(answers_t *self, const sequence_t *s) noexcept nogil
cdef void answers_propose(answers_t *self, const sequence_t *s, int32_t most, proposal_t *proposal) noexcept nogil
