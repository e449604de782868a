from libc.stdint cimport int32_t, int64_t

from .headers.llama cimport llama_batch, llama_context, llama_context_params

# Kept beside a llama_context, at an address that does not change; ctx is set once there is one.
cdef struct direct_logits_t:
    llama_context *ctx
    int32_t n_vocab
    int32_t n_outputs       # rows of logits the running llama_decode is to give
    int64_t n_decodes       # llama_decode calls whose logits were not copied

cdef void direct_logits_init(direct_logits_t *self, int32_t n_vocab, llama_context_params *params) noexcept nogil
cdef int32_t direct_logits_decode(direct_logits_t *self, const llama_batch *batch) noexcept nogil  # llama_decode's code
