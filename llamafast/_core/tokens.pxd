# What a sequence has been told and has said: its prompt, its output, and what is drafted behind them. Which of them are
# in memory, known or drafted is one of the laws of sequence.pxd.
from libc.stdint cimport int32_t

from .spans cimport span_t

cdef struct tokens_t:
    int32_t *ids            # (capacity,) prompt, then output
    int32_t capacity
    int32_t n_prompt
    int32_t n_past
    int32_t n_certain
    int32_t n_tokens
    int32_t n_max           # n_tokens stops growing here
    int32_t save_at         # once so many are in memory, run() returns for them to be saved
    span_t *spans           # (n_spans,) of the prompt, in order
    int32_t n_spans

cdef int tokens_init(tokens_t *self, const int32_t *prompt, int32_t n_prompt, int32_t max_tokens) except -1
cdef int tokens_take_spans(tokens_t *self, tuple spans) except -1
cdef void tokens_free(tokens_t *self) noexcept nogil
cdef int tokens_append(tokens_t *self, int32_t token) noexcept nogil
cdef int tokens_draft(tokens_t *self, const int32_t *tokens, int32_t n) noexcept nogil
cdef void tokens_undraft(tokens_t *self, int32_t n_kept) noexcept nogil
