"""Log probabilities leave together with the text of their tokens.

Text is held back while it may become a stop string or a whole character. A token leaves once all of its bytes have; at
the end those leave that began before the end of the text, so what belongs to a removed stop string alone is dropped.
"""
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from .pick cimport logprob_t


cdef logprob_t *logprobs_add(logprobs_t *self, int32_t length) noexcept nogil:
    """Room for the entries of a token that adds ``length`` bytes to the text; NULL when out of memory."""
    cdef int32_t width = 1 + self.n_top
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
    cdef int32_t width = 1 + self.n_top
    self.n_shown += n_more
    self.n -= n
    memmove(self.entries, self.entries + n * width, <size_t> self.n * <size_t> width * sizeof(logprob_t))
    memmove(self.begin, self.begin + n, <size_t> self.n * sizeof(int64_t))
    memmove(self.end, self.end + n, <size_t> self.n * sizeof(int64_t))


cdef void logprobs_free(logprobs_t *self) noexcept nogil:
    free(self.entries)
    free(self.begin)
    free(self.end)
