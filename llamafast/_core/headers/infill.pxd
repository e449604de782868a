# llama.h: the stage of sampling for texts that are filled in.
from libc.stdint cimport int64_t

from .llama cimport llama_token, llama_vocab

cdef extern from "llama.h" nogil:
    struct llama_sampler:
        pass

    ctypedef struct llama_token_data:
        llama_token id
        float logit
        float p

    ctypedef struct llama_token_data_array:
        llama_token_data *data
        size_t size
        int64_t selected
        bint sorted

    llama_sampler *llama_sampler_init_infill(const llama_vocab *vocab)
    void llama_sampler_apply(llama_sampler *smpl, llama_token_data_array *cur_p)
    void llama_sampler_free(llama_sampler *smpl)
