"""DRY, a penalty on tokens that would prolong a repetition (p-e-w: text-generation-webui, pull request 5677).

A repetition is a suffix of the window that occurs in it a second time; it does not reach back over a sequence breaker.
All suffixes are compared at once by the Z-algorithm (Gusfield: Algorithms on strings, trees and sequences, 1997) on the
reversed window, so a call costs time in proportion to the window.
"""
from libc.math cimport log, pow
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc, realloc

from .penalties cimport count_t, counts_reset, counts_take

# ln of the largest float32
cdef double MAX_LN = 88.7228


cdef int dry_init(dry_t *self, list breakers) except -1:
    """``breakers`` are pairs of a token and the tuple of those that must follow it, in ascending order. The struct
    must be zeroed; dry_free releases it also after an error."""
    cdef Py_ssize_t i, k = 0
    cdef Py_ssize_t n_tails = sum([len(tail) for _, tail in breakers])
    if breakers:
        self.breaker = <int32_t *> malloc(<size_t> len(breakers) * sizeof(int32_t))
        self.tail = <int32_t *> malloc((<size_t> len(breakers) + 1) * sizeof(int32_t))
        self.tails = <int32_t *> malloc((<size_t> n_tails + 1) * sizeof(int32_t))
        if self.breaker == NULL or self.tail == NULL or self.tails == NULL:
            raise MemoryError
    for i, (token, tail) in enumerate(breakers):
        self.breaker[i] = token
        self.tail[i] = <int32_t> k
        for following in tail:
            self.tails[k] = following
            k += 1
        self.tail[i + 1] = <int32_t> k
    self.n_breakers = <int32_t> len(breakers)
    return 0


cdef void dry_free(dry_t *self) noexcept nogil:
    free(self.breaker)
    free(self.tail)
    free(self.tails)
    free(self.repeat)
    free(self.longest.slots)


cdef int32_t first_breaker(dry_t *self, int32_t token) noexcept nogil:
    """The first entry of ``breaker`` that is not below the token."""
    cdef int32_t low = 0, high = self.n_breakers, middle
    while low < high:
        middle = (low + high) // 2
        if self.breaker[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint breaks_alone(dry_t *self, int32_t token) noexcept nogil:
    cdef int32_t at = first_breaker(self, token)
    while at < self.n_breakers and self.breaker[at] == token:
        if self.tail[at] == self.tail[at + 1]:
            return True
        at += 1
    return False


cdef int32_t since_breaker(dry_t *self, const int32_t *last, int32_t n) noexcept nogil:
    """How many of the n tokens up to ``last`` come after the newest sequence breaker."""
    cdef int32_t i, k, at, length, longest
    for i in range(n):
        at = first_breaker(self, last[-i])
        longest = -1
        while at < self.n_breakers and self.breaker[at] == last[-i]:
            length = self.tail[at + 1] - self.tail[at]
            if longest < length <= i:
                k = 0
                while k < length and self.tails[self.tail[at] + k] == last[-i + 1 + k]:
                    k += 1
                if k == length:
                    longest = length
            at += 1
        if longest >= 0:
            return i - longest
    return n


cdef void match_suffixes(const int32_t *last, int32_t n, int32_t *repeat) noexcept nogil:
    """repeat[k]: how many tokens up to last[-k] are those up to ``last``, for 0 < k < n."""
    cdef int32_t left = 0, right = 0, k, length
    for k in range(1, n):
        length = min(right - k, repeat[k - left]) if k < right else 0
        while k + length < n and last[-length] == last[-(k + length)]:
            length += 1
        repeat[k] = length
        if k + length > right:
            left = k
            right = k + length


cdef int dry_penalize(dry_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil:
    """Edit the logits of the tokens that would prolong a repetition: 0, or -1 when out of memory."""
    cdef int32_t n = min(n_history, self.last_n)
    cdef int32_t i, k, length, limit, most
    cdef int32_t *grown
    cdef count_t *slot
    cdef const int32_t *last = history + n_history - 1
    if n <= self.allowed_length:
        return 0
    limit = since_breaker(self, last, n)
    if limit < self.allowed_length:
        return 0
    if n > self.capacity:
        grown = <int32_t *> realloc(self.repeat, 2 * <size_t> n * sizeof(int32_t))
        if grown == NULL:
            return -1
        self.repeat = grown
        self.capacity = 2 * n
    match_suffixes(last, n, self.repeat)
    counts_reset(&self.longest, 0)
    for k in range(1, n):
        length = min(self.repeat[k], limit)
        if length < self.allowed_length or <uint32_t> last[1 - k] >= <uint32_t> self.longest.n_vocab:
            continue
        slot = counts_take(&self.longest, last[1 - k])
        if slot == NULL:
            return -1
        # one more: a count of 0 is a token that was not seen
        slot.count = max(slot.count, length + 1)
    most = <int32_t> min(MAX_LN / log(self.base), 1e9) if self.base > 1.000001 else 0
    for i in range(self.longest.capacity):
        slot = &self.longest.slots[i]
        if slot.token < 0 or slot.count == 0 or breaks_alone(self, slot.token):
            continue
        length = slot.count - 1 - self.allowed_length
        if most > 0:
            length = min(length, most)
        row[slot.token] -= <float> (self.multiplier * pow(self.base, length))
    return 0
