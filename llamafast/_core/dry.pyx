"""DRY, a penalty on tokens that would prolong a repetition (p-e-w: text-generation-webui, pull request 5677).

A repetition is a suffix of the window that occurs in it a second time; it does not reach back over a sequence breaker.
All suffixes are compared at once by the Z-algorithm (Gusfield: Algorithms on strings, trees and sequences, 1997) on the
reversed window, so a call costs time in proportion to the window.
"""
from libc.math cimport log, pow
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memmove, memset

from .leaks cimport BREAKERS, born, died
from .penalties cimport count_t, counts_reset, counts_take
from .vocab cimport Vocab, pieces_t

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t n_haystack, const void *needle, size_t n_needle)

# ln of the largest float32
cdef double MAX_LN = 88.7228


cdef class Breakers:
    """Sequence breakers as pairs of a token and the tuple of those that must follow it; immutable, for any number of
    Samplers in any threads."""

    def __cinit__(self, pairs=()):
        cdef Py_ssize_t i, k = 0
        cdef list entries = sorted(set(pairs))
        breakers_reserve(&self.table, len(entries), sum([len(tail) for _, tail in entries]))
        for i, (token, tail) in enumerate(entries):
            self.table.token[i] = token
            for following in tail:
                self.table.tails[k] = following
                k += 1
            self.table.tail[i + 1] = <int32_t> k

    @staticmethod
    def spelling(Vocab vocab not None, tuple texts not None, int32_t most=INT32_MAX):
        """All ways in which tokens can spell one of ``texts`` (bytes): a token holds all of it, or ends with the first
        part of it and the others are the rest, tokenised. Takes milliseconds, with many long texts up to a second.

        Raises ValueError for more than ``most`` of one text.
        """
        cdef Breakers self = Breakers.__new__(Breakers)
        cdef const pieces_t *pieces = &vocab.pieces
        cdef spellings_t found
        cdef int32_t *by_end = <int32_t *> malloc((<size_t> pieces.n_tokens + 257) * sizeof(int32_t))
        cdef uint8_t *holds = <uint8_t *> malloc(<size_t> pieces.n_tokens + 1)
        cdef list tails = [()]
        cdef dict places
        cdef bytes text
        cdef const char *wanted
        cdef int64_t i, start
        cdef int32_t n_wanted
        cdef int code
        memset(&found, 0, sizeof(found))
        try:
            if by_end == NULL or holds == NULL:
                raise MemoryError
            sort_by_end(pieces, by_end)
            for text in texts:
                start = found.n
                wanted, n_wanted = text, <int32_t> len(text)
                with nogil:
                    code = find_spellings(&found, pieces, by_end, holds, wanted, n_wanted, start + most)
                if code != 0:
                    raise MemoryError
                if found.n - start > most:
                    raise ValueError(f"more than {most} tokens spell {text.decode('utf-8', 'replace')!r}")
                places = {0: 0}
                for i in range(start, found.n):
                    overlap = found.entries[i].tail
                    if overlap not in places:
                        places[overlap] = len(tails)
                        rest = text[overlap:].decode("utf-8", "ignore")
                        tails.append(tuple(vocab.tokenize(rest, add_special=False, parse_special=False)))
                    found.entries[i].tail = places[overlap]
            take_spellings(&self.table, &found, tails)
        finally:
            free(by_end)
            free(holds)
            free(found.entries)
        return self

    def __dealloc__(self):
        breakers_free(&self.table)


cdef int breakers_reserve(breakers_t *self, int64_t n, int64_t n_tails) except -1:
    """Room for so many, none of which has a tail yet; what was there goes."""
    breakers_free(self)
    self.token = <int32_t *> malloc((<size_t> n + 1) * sizeof(int32_t))
    self.tail = <int32_t *> calloc(<size_t> n + 1, sizeof(int32_t))
    self.tails = <int32_t *> malloc((<size_t> n_tails + 1) * sizeof(int32_t))
    if self.tails != NULL:
        born(BREAKERS)
    if self.token == NULL or self.tail == NULL or self.tails == NULL:
        raise MemoryError
    self.n = <int32_t> n
    return 0


cdef void breakers_free(breakers_t *self) noexcept nogil:
    if self.tails != NULL:
        died(BREAKERS)
    free(self.token)
    free(self.tail)
    free(self.tails)
    memset(self, 0, sizeof(self[0]))


cdef struct spelling_t:
    int32_t token
    int32_t tail            # how much of the text the token ends with, 0: it holds all. Later a place in a list

cdef struct spellings_t:
    int64_t n
    int64_t capacity
    spelling_t *entries


cdef int spelling_add(spellings_t *self, int32_t token, int32_t tail) noexcept nogil:
    """0, or -1 when out of memory."""
    cdef spelling_t *grown
    cdef int64_t capacity
    if self.n == self.capacity:
        capacity = 2 * self.capacity + 1024
        grown = <spelling_t *> realloc(self.entries, <size_t> capacity * sizeof(spelling_t))
        if grown == NULL:
            return -1
        self.entries = grown
        self.capacity = capacity
    self.entries[self.n].token = token
    self.entries[self.n].tail = tail
    self.n += 1
    return 0


cdef int by_token(const void *a, const void *b) noexcept nogil:
    cdef const spelling_t *x = <const spelling_t *> a
    cdef const spelling_t *y = <const spelling_t *> b
    return (x.token > y.token) - (x.token < y.token)


cdef void sort_by_end(const pieces_t *pieces, int32_t *by_end) noexcept nogil:
    """by_end[by_end[b] : by_end[b + 1]] become the tokens whose last byte is b."""
    cdef int32_t token, byte
    memset(by_end, 0, 257 * sizeof(int32_t))
    for token in range(pieces.n_tokens):
        if pieces.offset[token + 1] > pieces.offset[token]:
            by_end[last_byte(pieces, token) + 1] += 1
    by_end[0] = 257
    for byte in range(256):
        by_end[byte + 1] += by_end[byte]
    # filling moves the beginning of each to its end, where the next one begins
    for token in range(pieces.n_tokens):
        if pieces.offset[token + 1] > pieces.offset[token]:
            byte = last_byte(pieces, token)
            by_end[by_end[byte]] = token
            by_end[byte] += 1
    memmove(by_end + 1, by_end, 256 * sizeof(int32_t))
    by_end[0] = 257


cdef inline int32_t last_byte(const pieces_t *pieces, int32_t token) noexcept nogil:
    return <uint8_t> pieces.text[pieces.offset[token + 1] - 1]


cdef int32_t token_at(const pieces_t *pieces, int64_t place) noexcept nogil:
    """Whose byte it is."""
    cdef int32_t low = 0, high = pieces.n_tokens - 1, middle
    while low < high:
        middle = high - (high - low) // 2
        if pieces.offset[middle] <= place:
            low = middle
        else:
            high = middle - 1
    return low


cdef int find_spellings(
    spellings_t *self, const pieces_t *pieces, const int32_t *by_end, uint8_t *holds, const char *text, int32_t n_text,
    int64_t most
) noexcept nogil:
    """Add the tokens that hold ``text`` or end with its first part, but stop beyond ``most``: 0, or -1 when out of
    memory. ``holds`` (n_tokens,) is scratch."""
    cdef int32_t token, k, overlap, end
    cdef const char *at = pieces.text
    cdef const char *stop = pieces.text + pieces.offset[pieces.n_tokens]
    if n_text == 0:
        return 0
    memset(holds, 0, <size_t> pieces.n_tokens)
    while at < stop and self.n <= most:
        at = <const char *> memmem(at, <size_t> (stop - at), text, <size_t> n_text)
        if at == NULL:
            break
        token = token_at(pieces, at - pieces.text)
        if at - pieces.text + n_text > pieces.offset[token + 1]:
            at += 1
            continue
        holds[token] = 1
        if spelling_add(self, token, 0) != 0:
            return -1
        at = pieces.text + pieces.offset[token + 1]
    for overlap in range(1, n_text):
        end = <uint8_t> text[overlap - 1]
        for k in range(by_end[end], by_end[end + 1]):
            token = by_end[k]
            if self.n > most:
                return 0
            if holds[token] or pieces.offset[token + 1] - pieces.offset[token] < overlap:
                continue
            if memcmp(pieces.text + pieces.offset[token + 1] - overlap, text, <size_t> overlap) == 0:
                if spelling_add(self, token, overlap) != 0:
                    return -1
    return 0


cdef int take_spellings(breakers_t *self, spellings_t *found, list tails) except -1:
    """Bring them in order; entries are equal only where texts are."""
    cdef int64_t i, k = 0, n_tails = 0
    cdef spelling_t *entry
    qsort(found.entries, <size_t> found.n, sizeof(spelling_t), by_token)
    for i in range(found.n):
        n_tails += len(<tuple> tails[found.entries[i].tail])
    breakers_reserve(self, found.n, n_tails)
    for i in range(found.n):
        entry = &found.entries[i]
        self.token[i] = entry.token
        if entry.tail:
            for following in <tuple> tails[entry.tail]:
                self.tails[k] = following
                k += 1
        self.tail[i + 1] = <int32_t> k
    return 0


cdef void dry_free(dry_t *self) noexcept nogil:
    free(self.repeat)
    free(self.longest.slots)


cdef int32_t first_breaker(const breakers_t *self, int32_t token) noexcept nogil:
    """The first entry whose token is not below this one."""
    cdef int32_t low = 0, high = self.n, middle
    while low < high:
        middle = (low + high) // 2
        if self.token[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint breaks_alone(const breakers_t *self, int32_t token) noexcept nogil:
    cdef int32_t at = first_breaker(self, token)
    while at < self.n and self.token[at] == token:
        if self.tail[at] == self.tail[at + 1]:
            return True
        at += 1
    return False


cdef int32_t since_breaker(const breakers_t *self, const int32_t *last, int32_t n) noexcept nogil:
    """How many of the n tokens up to ``last`` come after the newest sequence breaker."""
    cdef int32_t i, k, at, length, longest
    for i in range(n):
        at = first_breaker(self, last[-i])
        longest = -1
        while at < self.n and self.token[at] == last[-i]:
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
    limit = since_breaker(self.breakers, last, n)
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
        if slot.token < 0 or slot.count == 0 or breaks_alone(self.breakers, slot.token):
            continue
        length = slot.count - 1 - self.allowed_length
        if most > 0:
            length = min(length, most)
        row[slot.token] -= <float> (self.multiplier * pow(self.base, length))
    return 0
