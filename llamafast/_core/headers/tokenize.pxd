# What tokenize.h declares and documents.
from libc.stdint cimport int32_t

from .llama cimport llama_vocab

cdef extern from "tokenize.h" nogil:
    enum:
        TOKENIZE_NO_MEMORY
        TOKENIZE_THREW
    int32_t tokenize_depth(const llama_vocab *vocab)
    int32_t tokenize_limit(int32_t depth)
    int32_t tokenize_apart(
        const llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity,
        bint add_special, bint parse_special, int32_t depth)
    int32_t tokenize_all(
        const llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity,
        bint add_special, bint parse_special)
    double tokenize_seconds()
