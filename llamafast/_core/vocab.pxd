# The vocabulary's table of pieces.
from libc.stdint cimport int32_t, uint8_t

from .headers.llama cimport llama_vocab
from .model cimport Model

cdef enum:
    TOKEN_EOG = 1
    TOKEN_CONTROL = 2

# Read once per model; token t's bytes are text[offset[t] : offset[t + 1]].
cdef struct pieces_t:
    int32_t n_tokens
    int32_t *offset     # (n_tokens + 1)
    uint8_t *flags      # (n_tokens,) TOKEN_* bits
    char *text
    int32_t *eog        # (n_eog,) the tokens with TOKEN_EOG
    int32_t n_eog

cdef class Vocab:
    cdef Model model
    cdef const llama_vocab *vocab
    cdef pieces_t pieces
    cdef int32_t depth

# CPU seconds that tokenising has spent for this thread in others.
cdef double tokenizing_seconds() noexcept nogil
