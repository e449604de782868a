from libc.stdint cimport int32_t, int64_t

from .pick cimport logprob_t

# The log probabilities of one sequence's tokens, on their way to the Outbox: each token has 1 + n_top entries.
cdef struct logprobs_t:
    int32_t n_top           # -1: nobody asked for any
    int32_t n_scored        # tokens of the prompt before it have been reported, or need not be
    int64_t n_fed           # bytes of text so far
    int64_t n_shown         # how many of them have left
    logprob_t *entries      # (capacity * (1 + n_top),)
    int64_t *begin          # (capacity,) where the token's bytes begin in the text
    int64_t *end
    int32_t n
    int32_t capacity

cdef logprob_t *logprobs_add(logprobs_t *self, int32_t length) noexcept nogil
cdef int32_t logprobs_ready(const logprobs_t *self, int32_t n_more, bint finished) noexcept nogil
cdef void logprobs_drop(logprobs_t *self, int32_t n, int32_t n_more) noexcept nogil
cdef void logprobs_free(logprobs_t *self) noexcept nogil
