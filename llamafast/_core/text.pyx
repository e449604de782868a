"""From token bytes to text that may be shown: whole characters only, and nothing of a stop string.

Stop strings are matched byte by byte with one Knuth-Morris-Pratt automaton each ("Fast pattern matching in strings",
1977), so the work per byte is constant whatever was generated before, and the result does not depend on how bytes are
divided into tokens. The automata also say how much must be held back: the longest suffix that may still become a stop.
"""
from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove


cdef int text_init(text_t *self, tuple stops) except -1:
    """``stops`` are non-empty bytes. The struct must be zeroed; text_free releases it also after an error."""
    cdef bytes stop
    if stops:
        self.stops = <stop_t *> calloc(len(stops), sizeof(stop_t))
        if self.stops == NULL:
            raise MemoryError
    for stop in stops:
        self.n_stops += 1
        stop_init(&self.stops[self.n_stops - 1], stop)
    return 0


cdef int stop_init(stop_t *self, bytes text) except -1:
    """The struct must be zeroed; stop_free releases it also after an error. fail[i] is the length of the longest proper
    prefix of text that text[: i + 1] ends with."""
    cdef int32_t i, matched = 0
    if not text:
        raise ValueError("a stop string must not be empty")
    self.length = <int32_t> len(text)
    self.text = <char *> malloc(self.length)
    self.fail = <int32_t *> calloc(self.length, sizeof(int32_t))
    if self.text == NULL or self.fail == NULL:
        raise MemoryError
    memcpy(self.text, <const char *> text, self.length)
    for i in range(1, self.length):
        while matched and self.text[matched] != self.text[i]:
            matched = self.fail[matched - 1]
        if self.text[matched] == self.text[i]:
            matched += 1
        self.fail[i] = matched
    return 0


cdef void stop_free(stop_t *self) noexcept nogil:
    free(self.text)
    free(self.fail)


cdef bint stop_read(stop_t *self, char byte) noexcept nogil:
    """Whether ``byte`` completes it."""
    while self.matched and self.text[self.matched] != byte:
        self.matched = self.fail[self.matched - 1]
    if self.text[self.matched] == byte:
        self.matched += 1
    if self.matched < self.length:
        return False
    self.matched = self.fail[self.length - 1]
    return True


cdef void text_free(text_t *self) noexcept nogil:
    cdef int32_t i
    for i in range(self.n_stops):
        stop_free(&self.stops[i])
    free(self.stops)
    free(self.pending)
    self.stops = NULL
    self.pending = NULL
    self.n_stops = self.n_pending = self.capacity = 0


cdef int text_feed(text_t *self, const char *piece, int32_t length) noexcept nogil:
    """Append bytes. Where they complete a stop string pending ends before it, the stop itself lies behind that, and its
    length is returned; else 0, or -1 when out of memory. Of stops completed by the same byte the longest wins, and
    stopped_by says which that is."""
    cdef int32_t i, k, longest
    cdef char *grown
    if self.n_pending + length > self.capacity:
        i = 2 * (self.n_pending + length) + 32
        grown = <char *> realloc(self.pending, i)
        if grown == NULL:
            return -1
        self.pending = grown
        self.capacity = i
    for i in range(length):
        self.pending[self.n_pending] = piece[i]
        self.n_pending += 1
        longest = 0
        for k in range(self.n_stops):
            if stop_read(&self.stops[k], piece[i]) and self.stops[k].length > longest:
                longest = self.stops[k].length
                self.stopped_by = k
        if longest:
            self.n_pending -= longest
            return longest
    return 0


cdef int32_t text_ready(const text_t *self) noexcept nogil:
    """How many pending bytes are certain: they end with a whole character and no stop can begin in them."""
    cdef int32_t i, held = 0
    for i in range(self.n_stops):
        held = max(held, self.stops[i].matched)
    if held:
        # a stop begins with the first byte of a character, so the bytes before it are whole or will never be
        return self.n_pending - held
    return self.n_pending - utf8_incomplete(self.pending, self.n_pending)


cdef int32_t utf8_incomplete(const char *text, int32_t length) noexcept nogil:
    """The number of trailing bytes that may be the beginning of a character (RFC 3629), 0 to 3."""
    cdef int32_t back, wanted
    cdef uint8_t byte
    for back in range(1, min(length, 3) + 1):
        byte = <uint8_t> text[length - back]
        if byte < 0x80 or byte > 0xF4:
            return 0
        if byte >= 0xC0:
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < wanted else 0
    return 0


cdef void text_drop(text_t *self, int32_t length) noexcept nogil:
    """Forget the first ``length`` pending bytes: they were shown."""
    self.n_pending -= length
    memmove(self.pending, self.pending + length, self.n_pending)
