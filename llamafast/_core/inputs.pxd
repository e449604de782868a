# What is embedded.
from libc.stdint cimport int32_t

cdef struct input_t:
    int32_t *tokens
    int32_t n_tokens
    int32_t n_past          # tokens that have been computed
    int32_t n_rows          # rows in the current step
    int32_t first_row
    int32_t seq_id          # -1 while it does not run
    int32_t dimensions      # numbers of a vector that are wanted, 0: all
    int32_t normalize       # llama-server's embd_normalize
    int32_t width           # numbers of a vector
    int32_t n_vectors
    float *values           # (n_vectors, width)
    bint finite
    bint alone              # computed with nobody else

cdef class Input:
    cdef input_t state
    cdef readonly int32_t group     # of adapters
    cdef readonly object adapters   # what holds that

cdef void input_finish(input_t *s) noexcept nogil
