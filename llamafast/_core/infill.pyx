"""llama.cpp's stage for texts that are filled in: it ends them where an end is likely, takes tokens that begin alike
for one, and keeps what is likely then.

It compares the texts of all pairs of candidates, so it is given few: what it keeps has a fifth of the probability.
"""
from libc.stdint cimport int32_t

from .headers.infill cimport (
    llama_sampler, llama_sampler_apply, llama_sampler_free, llama_sampler_init_infill, llama_token_data,
    llama_token_data_array,
)
from .vocab cimport Vocab

# Below it a logit is ruled out, by a mask or a ban.
cdef float RULED_OUT = -1e29


cdef class Infill:
    """The stage for one vocabulary: for any number of Samplers in one thread, as it has memory to work in."""

    def __cinit__(self, Vocab vocab not None):
        self.vocab = vocab
        self.stage = llama_sampler_init_infill(vocab.vocab)
        if self.stage == NULL:
            raise MemoryError

    def __dealloc__(self):
        llama_sampler_free(self.stage)


cdef int32_t infill_keep(llama_sampler *stage, float *logit, int32_t *id, int32_t n, const float *row) noexcept nogil:
    cdef llama_token_data data[MOST_CANDIDATES]
    cdef llama_token_data_array candidates
    cdef int32_t i
    n = min(n, <int32_t> MOST_CANDIDATES)
    for i in range(n):
        data[i] = llama_token_data(id[i], logit[i], 0)
    candidates.data = data
    candidates.size = <size_t> n
    candidates.selected = -1
    candidates.sorted = False
    llama_sampler_apply(stage, &candidates)
    # it ends a text of which no token is likely, also where the end is no candidate
    if candidates.size == 0 or (candidates.size == 1 and row[candidates.data[0].id] < RULED_OUT):
        return n
    for i in range(<int32_t> candidates.size):
        id[i] = candidates.data[i].id
        logit[i] = candidates.data[i].logit
    return <int32_t> candidates.size
