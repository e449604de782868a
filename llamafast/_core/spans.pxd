# Spans: rows of media in a sequence, and which of its tokens are such rows.
#
# A row of media is a vector and no token of the vocabulary. Its place among a sequence's tokens is taken by an id below
# -1, made of a digest of what it shows, so that whatever compares tokens compares media too. An even one begins a span,
# odd ones go on in it: where a sequence must not be cut is seen from its ids alone.
from libc.stdint cimport int32_t

cdef struct span_t:
    int32_t row             # the first of its tokens
    int32_t n_rows
    int32_t position        # of that token
    int32_t n_positions     # so many further the next token behind it lies: under M-RoPE fewer than rows
    bint causal
    const int32_t *offsets  # (4, n_rows) planes t, y and x from ``position`` on, and z; NULL: row by row
    const float *rows       # (n_rows, width) of the model's input; NULL: they are not here

cdef class Span:
    cdef span_t state
    cdef bytes offsets

cdef inline bint is_media(int32_t token) noexcept nogil:
    return token < -1

cdef inline bint is_inside(const int32_t *ids, int32_t n_ids, int32_t n) noexcept nogil:
    """Whether a cut before token ``n`` would divide a span."""
    return n < n_ids and is_media(ids[n]) and ids[n] & 1

cdef inline int32_t cut_before(const int32_t *ids, int32_t n_ids, int32_t n) noexcept nogil:
    """The last place up to ``n`` where a sequence may be cut."""
    while is_inside(ids, n_ids, n):
        n -= 1
    return n

cdef inline int32_t cut_behind(const int32_t *ids, int32_t n_ids, int32_t n) noexcept nogil:
    """The first place from ``n`` on where a sequence may be cut."""
    while is_inside(ids, n_ids, n):
        n += 1
    return n

cdef const span_t *span_behind(const span_t *spans, int32_t n_spans, int32_t n) noexcept nogil
cdef int32_t spans_position(const span_t *spans, int32_t n_spans, int32_t n) noexcept nogil
