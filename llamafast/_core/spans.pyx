"""Rows of media in a sequence: where they lie, for memory and for attention."""
from libc.stdint cimport INT32_MAX, int32_t


cdef class Span:
    """``n_rows`` rows of media from token ``row`` of a prompt on, which advance positions by ``n_positions``.

    ``offsets`` (none: the rows lie one behind the other) are int32, four planes of (n_rows,): t, y and x from the first
    row's position on, and z as it is. A span that is not ``causal`` is computed at one go, each row seeing all of them.

    Raises ValueError for what cannot be.
    """

    def __cinit__(self, int32_t row, int32_t n_rows, int32_t n_positions, bint causal, bytes offsets=b""):
        cdef span_t *span = &self.state
        cdef int32_t i
        if row < 0 or n_rows < 1 or n_positions < 1 or row > INT32_MAX - n_rows:
            raise ValueError(f"a span of {n_rows} rows from {row} on, over {n_positions} positions")
        if offsets and len(offsets) != 16 * <Py_ssize_t> n_rows:
            raise ValueError(f"{len(offsets)} bytes of positions for {n_rows} rows")
        self.offsets = offsets
        span.row = row
        span.n_rows = n_rows
        span.n_positions = n_positions
        span.causal = causal
        if offsets:
            span.offsets = <const int32_t *> <const char *> offsets
            for i in range(n_rows):
                if not (span.offsets[i - 1] if i else 0) <= span.offsets[i] < n_positions:
                    raise ValueError("times of rows that do not rise, or rise beyond the span")
        elif n_positions != n_rows:
            raise ValueError(f"{n_rows} rows one behind the other over {n_positions} positions")


cdef const span_t *span_behind(const span_t *spans, int32_t n_spans, int32_t n) noexcept nogil:
    """The first span that has not ended before token ``n``; NULL: there is none."""
    cdef int32_t low = 0, high = n_spans, middle
    while low < high:
        middle = (low + high) // 2
        if spans[middle].row + spans[middle].n_rows <= n:
            low = middle + 1
        else:
            high = middle
    return spans + low if low < n_spans else NULL


cdef int32_t spans_position(const span_t *spans, int32_t n_spans, int32_t n) noexcept nogil:
    """The position of token ``n``; in a span the time of its row."""
    cdef const span_t *span = span_behind(spans, n_spans, n)
    cdef const span_t *before
    if span != NULL and span.row <= n:
        return span.position + (span.offsets[n - span.row] if span.offsets != NULL else n - span.row)
    before = (span if span != NULL else spans + n_spans) - 1
    if before < spans:
        return n
    return before.position + before.n_positions + n - before.row - before.n_rows
