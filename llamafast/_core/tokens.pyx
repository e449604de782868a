"""The tokens of a sequence: a prompt, maybe with rows of media in it, and what is generated or drafted behind it."""
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from .context cimport UNLIMITED
from .spans cimport Span, is_inside, is_media, span_t, spans_position


cdef int tokens_init(tokens_t *self, const int32_t *prompt, int32_t n_prompt, int32_t max_tokens) except -1:
    """A prompt, behind which ``max_tokens`` may come. The struct must be zeroed; tokens_free releases it also after an
    error."""
    self.save_at = UNLIMITED
    self.n_prompt = self.n_certain = self.n_tokens = n_prompt
    self.n_max = n_prompt + max_tokens
    self.capacity = n_prompt + min(max_tokens, 64)
    self.ids = <int32_t *> malloc(<size_t> self.capacity * sizeof(int32_t))
    if self.ids == NULL:
        raise MemoryError
    memcpy(self.ids, prompt, <size_t> n_prompt * sizeof(int32_t))
    return 0


cdef int tokens_take_spans(tokens_t *self, tuple spans) except -1:
    """The rows of media in the prompt (Span). Raises ValueError where they are not those that its ids tell of."""
    cdef int32_t i, end = 0, n_media = 0
    cdef span_t *span
    self.spans = <span_t *> calloc(<size_t> len(spans), sizeof(span_t))
    if self.spans == NULL:
        raise MemoryError
    for given in spans:
        span = &self.spans[self.n_spans]
        span[0] = (<Span?> given).state
        if span.row < end or span.row + span.n_rows >= self.n_prompt:
            raise ValueError("spans that overlap, or end with the prompt")
        end = span.row + span.n_rows
        span.position = spans_position(self.spans, self.n_spans, span.row)
        self.n_spans += 1
        for i in range(span.row, end):
            if not is_media(self.ids[i]) or is_inside(self.ids, self.n_prompt, i) != (i > span.row):
                raise ValueError(f"token id {self.ids[i]} in a span")
        n_media += span.n_rows
    for i in range(self.n_prompt):
        n_media -= is_media(self.ids[i])
    if n_media:
        raise ValueError("token ids of media outside spans")
    return 0


cdef void tokens_free(tokens_t *self) noexcept nogil:
    free(self.ids)
    free(self.spans)


cdef int tokens_append(tokens_t *self, int32_t token) noexcept nogil:
    """Add a generated token, which is certain: 0, or -1 when out of memory. Where it is what was drafted the rest of
    the draft stays."""
    if self.n_certain == self.n_tokens or self.ids[self.n_certain] != token:
        if grow(self, self.n_certain + 1) < 0:
            return -1
        self.ids[self.n_certain] = token
        self.n_tokens = self.n_certain + 1
    self.n_certain += 1
    return 0


cdef int tokens_draft(tokens_t *self, const int32_t *tokens, int32_t n) noexcept nogil:
    """Draft ``n`` tokens behind what is certain, of which there may be one more: 0, or -1 when out of memory."""
    if grow(self, self.n_certain + n) < 0:
        return -1
    memcpy(self.ids + self.n_certain, tokens, <size_t> n * sizeof(int32_t))
    self.n_tokens = self.n_certain + n
    return 0


cdef void tokens_undraft(tokens_t *self, int32_t n_kept) noexcept nogil:
    """Keep the first ``n_kept`` drafted tokens at most."""
    self.n_tokens = min(self.n_tokens, self.n_certain + n_kept)


cdef int grow(tokens_t *self, int32_t n) noexcept nogil:
    """Have room for ``n`` tokens, n_max at most: 0, or -1 when out of memory."""
    cdef int32_t *grown
    cdef int32_t capacity
    if n <= self.capacity:
        return 0
    capacity = min(max(2 * self.capacity, n), self.n_max)
    grown = <int32_t *> realloc(self.ids, <size_t> capacity * sizeof(int32_t))
    if grown == NULL:
        return -1
    self.ids = grown
    self.capacity = capacity
    return 0
