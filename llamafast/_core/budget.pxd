# How long a sequence may reason: the marks around its thoughts, and how many tokens of thought are left.
from libc.stdint cimport int32_t

from .text cimport stop_t

cdef struct thoughts_t:
    stop_t begin
    stop_t end
    int32_t *forced     # (end.length,) the token that goes on from so many bytes of the end

cdef struct budget_t:
    thoughts_t *marks   # (n_marks,)
    int32_t n_marks     # 0: it may reason as long as it likes
    stop_t *closers     # (n_closers,) what ends thoughts too, although nobody writes it for the model
    int32_t n_closers
    int32_t within      # which of them is open, -1: none
    int32_t n_left      # tokens

cdef int budget_init(budget_t *self, int32_t n_tokens, int32_t within, tuple marks, tuple closers) except -1
cdef void budget_free(budget_t *self) noexcept nogil
cdef int32_t budget_token(const budget_t *self) noexcept nogil
cdef void budget_read(budget_t *self, const char *piece, int32_t length) noexcept nogil
