# Who runs, and what they lend each other.
from libc.stdint cimport int32_t, int64_t

from .blocks cimport blocks_t
from .headers.llama cimport LLAMA_MAX_SEQ, llama_memory_t
from .sequence cimport sequence_t

# The sequences that run, in order of admission, and who has which of their tokens.
cdef struct live_t:
    llama_memory_t memory
    bint unified
    int32_t n_cuttable
    int32_t n
    sequence_t *states[LLAMA_MAX_SEQ]
    sequence_t *by_seq_id[LLAMA_MAX_SEQ]    # NULL: a free one
    int32_t n_seq_max
    int32_t n_free
    int32_t free_seq_ids[LLAMA_MAX_SEQ]     # (n_free,) the last one is given next
    blocks_t blocks             # the tokens of whoever runs, in memory or not yet
    int64_t queries             # prompt tokens looked up
    int64_t hits                # of those, taken from another sequence
    int64_t restored            # of those, restored from a saved state
    int64_t forks

# What one sequence can lend another one.
cdef struct loan_t:
    sequence_t *lender          # NULL: nobody
    int32_t n_shared            # tokens, in the end
    int32_t n_there             # of those, in memory or about to be restored

cdef inline bint live_is_restoring(const sequence_t *s) noexcept nogil:
    """Whether tokens of it are still to come from elsewhere."""
    return s.tokens.n_past < s.share.n_restore

cdef int live_init(
    live_t *self, llama_memory_t memory, bint unified, int32_t n_cuttable, int32_t n_seq_max
) noexcept nogil
cdef void live_free(live_t *self) noexcept nogil
cdef void live_add(live_t *self, sequence_t *s, int32_t n_restore) noexcept nogil
cdef void live_remove(live_t *self, sequence_t *s) noexcept nogil
cdef void live_clear(live_t *self) noexcept nogil
cdef loan_t live_loan(const live_t *self, sequence_t *s) noexcept nogil
cdef void live_follow(live_t *self, sequence_t *s) noexcept nogil
cdef void live_restore(live_t *self, sequence_t *s, int32_t n_past, bint done) noexcept nogil
cdef void live_goals(live_t *self) noexcept nogil
cdef int32_t live_stop(const live_t *self, const sequence_t *s, int32_t take) noexcept nogil
cdef void live_grow(live_t *self, sequence_t *s, int32_t n_before) noexcept nogil
