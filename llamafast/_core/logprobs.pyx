"""Log probabilities: what a row of logits gives, and how they leave together with the text of their tokens.

Text is held back while it may become a stop string or a whole character. A token leaves once all of its bytes have; at
the end those leave that began before the end of the text, so what belongs to a removed stop string alone is dropped.
"""
from libc.math cimport log
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from .draw cimport least_of_top, scratch_t
from .headers.logits cimport logits_gather, logits_sum_exp, logits_use
from .simd cimport simd_limit

logits_use(simd_limit())


cdef void row_logprobs(
    scratch_t *scratch, const float *row, int32_t token, int32_t n_top, logprob_t *out
) noexcept nogil:
    cdef int32_t n_vocab = scratch.n_vocab
    cdef int32_t i, k, n, kept = 0
    cdef float largest
    cdef double total = logits_sum_exp(row, n_vocab, 1, scratch.block_max, scratch.block_sum, &largest)
    cdef double norm = largest + log(total)
    out[0] = logprob_t(token, <float> (row[token] - norm))
    if n_top <= 0:
        return
    n = logits_gather(
        row, n_vocab, scratch.block_max, least_of_top(scratch, n_vocab, n_top, largest), scratch.logit, scratch.id)
    for i in range(n):
        if kept == n_top and scratch.logit[i] <= out[kept].logprob:
            continue
        kept = min(kept + 1, n_top)
        k = kept
        while k > 1 and out[k - 1].logprob < scratch.logit[i]:
            out[k] = out[k - 1]
            k -= 1
        out[k] = logprob_t(scratch.id[i], scratch.logit[i])
    for k in range(1, n_top + 1):
        out[k] = logprob_t(out[k].token, <float> (out[k].logprob - norm)) if k <= kept else logprob_t(-1, 0)


cdef int32_t row_rank(const float *row, int32_t n_vocab, int32_t token) noexcept nogil:
    cdef int32_t i, rank = 1
    cdef float logit = row[token]
    for i in range(n_vocab):
        rank += row[i] > logit
    return rank


cdef logprob_t *logprobs_add(logprobs_t *self, int32_t length) noexcept nogil:
    """Room for the entries of a token that adds ``length`` bytes to the text; NULL when out of memory."""
    cdef int32_t width = self.width
    cdef int32_t capacity
    cdef void *grown
    if self.n == self.capacity:
        capacity = 2 * self.capacity + 4
        grown = realloc(self.entries, <size_t> capacity * <size_t> width * sizeof(logprob_t))
        if grown == NULL:
            return NULL
        self.entries = <logprob_t *> grown
        grown = realloc(self.begin, <size_t> capacity * sizeof(int64_t))
        if grown == NULL:
            return NULL
        self.begin = <int64_t *> grown
        grown = realloc(self.end, <size_t> capacity * sizeof(int64_t))
        if grown == NULL:
            return NULL
        self.end = <int64_t *> grown
        self.capacity = capacity
    self.begin[self.n] = self.n_fed
    self.n_fed += length
    self.end[self.n] = self.n_fed
    self.n += 1
    return self.entries + (self.n - 1) * width


cdef int32_t logprobs_ready(const logprobs_t *self, int32_t n_more, bint finished) noexcept nogil:
    """How many tokens may leave with the next ``n_more`` bytes of text."""
    cdef int64_t shown = self.n_shown + n_more
    cdef int32_t n = 0
    while n < self.n and (self.begin[n] < shown if finished else self.end[n] <= shown):
        n += 1
    return n


cdef void logprobs_drop(logprobs_t *self, int32_t n, int32_t n_more) noexcept nogil:
    """Forget the first ``n`` tokens: they have left, and ``n_more`` bytes of text with them."""
    cdef int32_t width = self.width
    self.n_shown += n_more
    self.n -= n
    memmove(self.entries, self.entries + n * width, <size_t> self.n * <size_t> width * sizeof(logprob_t))
    memmove(self.begin, self.begin + n, <size_t> self.n * sizeof(int64_t))
    memmove(self.end, self.end + n, <size_t> self.n * sizeof(int64_t))


cdef void logprobs_free(logprobs_t *self) noexcept nogil:
    free(self.entries)
    free(self.begin)
    free(self.end)
