# The stage of sampling for texts that are filled in.
from libc.stdint cimport int32_t

from .headers.infill cimport llama_sampler
from .vocab cimport Vocab

cdef enum:
    MOST_CANDIDATES = 128

cdef class Infill:
    cdef Vocab vocab
    cdef llama_sampler *stage

# Reduce n candidates, which are of row (n_vocab,), to those that llama.cpp's stage keeps; returns how many are left.
cdef int32_t infill_keep(llama_sampler *stage, float *logit, int32_t *id, int32_t n, const float *row) noexcept nogil
