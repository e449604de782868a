# Text on its way to a reader: what is pending, and the stop strings that are looked for.
from libc.stdint cimport int32_t

cdef struct stop_t:
    char *text
    int32_t *fail       # (length,) Knuth-Morris-Pratt failure table
    int32_t length
    int32_t matched     # how many bytes of text the stream ends with right now

cdef struct text_t:
    stop_t *stops
    int32_t n_stops
    char *pending       # (capacity,) what was fed and not yet taken
    int32_t n_pending
    int32_t capacity
    int32_t stopped_by  # which stop was completed last

cdef int stop_init(stop_t *self, bytes text) except -1
cdef void stop_free(stop_t *self) noexcept nogil
cdef bint stop_read(stop_t *self, char byte) noexcept nogil
cdef int text_init(text_t *self, tuple stops) except -1
cdef void text_free(text_t *self) noexcept nogil
cdef int text_feed(text_t *self, const char *piece, int32_t length) noexcept nogil
cdef int32_t text_ready(const text_t *self) noexcept nogil
cdef void text_drop(text_t *self, int32_t length) noexcept nogil
