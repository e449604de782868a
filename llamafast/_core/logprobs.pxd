# Log probabilities of tokens, from a row of logits to the Outbox.
from libc.stdint cimport int32_t, int64_t

from .draw cimport scratch_t

cdef struct logprob_t:
    int32_t token           # -1: there are no more tokens than those before
    float logprob

# Log probabilities in row (n_vocab,): in out[0] the token's, then the n_top largest ones in descending order.
cdef void row_logprobs(
    scratch_t *scratch, const float *row, int32_t token, int32_t n_top, logprob_t *out
) noexcept nogil

# One more than there are logits in row (n_vocab,) above the token's: 1 for the likeliest.
cdef int32_t row_rank(const float *row, int32_t n_vocab, int32_t token) noexcept nogil

# The log probabilities of one sequence's tokens, on their way to the Outbox: each token has `width` entries.
cdef struct logprobs_t:
    int32_t n_top           # -1: nobody asked for any
    int32_t width           # 1 + n_top, and where its prompt is scored one more: the rank, in place of a token
    int32_t n_scored        # tokens of the prompt before it have been reported, or need not be
    int64_t n_fed           # bytes of text so far
    int64_t n_shown         # how many of them have left
    logprob_t *entries      # (capacity * width,)
    int64_t *begin          # (capacity,) where the token's bytes begin in the text
    int64_t *end
    int32_t n
    int32_t capacity

cdef logprob_t *logprobs_add(logprobs_t *self, int32_t length) noexcept nogil
cdef int32_t logprobs_ready(const logprobs_t *self, int32_t n_more, bint finished) noexcept nogil
cdef void logprobs_drop(logprobs_t *self, int32_t n, int32_t n_more) noexcept nogil
cdef void logprobs_free(logprobs_t *self) noexcept nogil
