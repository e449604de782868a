"""When a sequence has reasoned for as many tokens as it may, the mark that ends its thoughts is written for it.

Marks are found byte by byte, by the automata of stop strings, whether they are tokens of their own or several. What
completes the end from where it stands is looked up by how much of it is there, so it also ends a mark that the model,
or a grammar, has begun.
"""
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc

from .text cimport stop_free, stop_init, stop_read


cdef int budget_init(budget_t *self, int32_t n_tokens, int32_t within, tuple marks, tuple closers) except -1:
    """``marks`` are (begin, end, tokens), bytes and for each byte of the end the token that goes on from there;
    ``within``: which of them the prompt has opened; ``closers``, bytes, are marks of what may follow thoughts that
    nobody has ended. The struct must be zeroed; budget_free releases it also after an error. Raises ValueError for
    marks that are none."""
    cdef bytes begin, end
    cdef tuple tokens
    cdef thoughts_t *entry
    cdef Py_ssize_t i
    self.n_left = n_tokens
    self.within = within
    if not -1 <= within < len(marks):
        raise ValueError(f"there is no mark {within}")
    if marks:
        self.marks = <thoughts_t *> calloc(len(marks), sizeof(thoughts_t))
        if self.marks == NULL:
            raise MemoryError
    for begin, end, tokens in marks:
        entry = &self.marks[self.n_marks]
        self.n_marks += 1
        stop_init(&entry.begin, begin)
        stop_init(&entry.end, end)
        if len(tokens) != len(end):
            raise ValueError("each byte of an end has a token")
        entry.forced = <int32_t *> malloc(<size_t> len(end) * sizeof(int32_t))
        if entry.forced == NULL:
            raise MemoryError
        for i in range(len(tokens)):
            entry.forced[i] = tokens[i]
    if closers:
        self.closers = <stop_t *> calloc(len(closers), sizeof(stop_t))
        if self.closers == NULL:
            raise MemoryError
    for begin in closers:
        self.n_closers += 1
        stop_init(&self.closers[self.n_closers - 1], begin)
    return 0


cdef void budget_free(budget_t *self) noexcept nogil:
    cdef int32_t i
    for i in range(self.n_marks):
        stop_free(&self.marks[i].begin)
        stop_free(&self.marks[i].end)
        free(self.marks[i].forced)
    for i in range(self.n_closers):
        stop_free(&self.closers[i])
    free(self.marks)
    free(self.closers)
    self.marks = NULL
    self.closers = NULL
    self.n_marks = self.n_closers = 0


cdef int32_t budget_token(const budget_t *self) noexcept nogil:
    """The token that has to come next, -1: any."""
    if self.n_marks == 0 or self.within < 0 or self.n_left > 0:
        return -1
    return self.marks[self.within].forced[self.marks[self.within].end.matched]


cdef void budget_read(budget_t *self, const char *piece, int32_t length) noexcept nogil:
    """Take in what a generated token stands for; one that is within thoughts behind it is one of them."""
    cdef int32_t i, k
    cdef bint thinks = self.within >= 0
    for i in range(length):
        if self.within >= 0:
            if ends(self, piece[i]):
                restart(self)
                self.within = -1
            continue
        for k in range(self.n_marks):
            if stop_read(&self.marks[k].begin, piece[i]):
                restart(self)
                self.within = k
                break
    if thinks and self.within >= 0:
        self.n_left -= 1


cdef bint ends(budget_t *self, char byte) noexcept nogil:
    """Whether ``byte`` completes what ends the thoughts that are open."""
    cdef int32_t k
    cdef bint ended = stop_read(&self.marks[self.within].end, byte)
    for k in range(self.n_closers):
        if stop_read(&self.closers[k], byte):
            ended = True
    return ended


cdef void restart(budget_t *self) noexcept nogil:
    """What was read of any mark is behind."""
    cdef int32_t k
    for k in range(self.n_marks):
        self.marks[k].begin.matched = self.marks[k].end.matched = 0
    for k in range(self.n_closers):
        self.closers[k].matched = 0
