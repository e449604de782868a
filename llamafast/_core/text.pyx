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
    cdef stop_t *entry
    if stops:
        self.stops = <stop_t *> calloc(len(stops), sizeof(stop_t))
        if self.stops == NULL:
            raise MemoryError
    for stop in stops:
        if not stop:
            raise ValueError("a stop string must not be empty")
        entry = &self.stops[self.n_stops]
        self.n_stops += 1
        entry.length = <int32_t> len(stop)
        entry.text = <char *> malloc(entry.length)
        entry.fail = <int32_t *> calloc(entry.length, sizeof(int32_t))
        if entry.text == NULL or entry.fail == NULL:
            raise MemoryError
        memcpy(entry.text, <const char *> stop, entry.length)
        stop_prepare(entry)
    return 0


cdef void stop_prepare(stop_t *stop) noexcept nogil:
    """fail[i] is the length of the longest proper prefix of text that text[: i + 1] ends with."""
    cdef int32_t i, matched = 0
    for i in range(1, stop.length):
        while matched and stop.text[matched] != stop.text[i]:
            matched = stop.fail[matched - 1]
        if stop.text[matched] == stop.text[i]:
            matched += 1
        stop.fail[i] = matched


cdef void text_free(text_t *self) noexcept nogil:
    cdef int32_t i
    for i in range(self.n_stops):
        free(self.stops[i].text)
        free(self.stops[i].fail)
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
    cdef stop_t *stop
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
            stop = &self.stops[k]
            while stop.matched and stop.text[stop.matched] != piece[i]:
                stop.matched = stop.fail[stop.matched - 1]
            if stop.text[stop.matched] == piece[i]:
                stop.matched += 1
            if stop.matched == stop.length:
                if stop.length > longest:
                    longest = stop.length
                    self.stopped_by = k
                stop.matched = stop.fail[stop.length - 1]
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
