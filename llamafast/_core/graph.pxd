# What of a context's graphs is ours, and how often it was computed.
from libc.stdint cimport int32_t, int64_t

from .headers.adapters cimport adapters
from .headers.llama cimport ggml_backend_buffer, ggml_tensor, llama_batch, llama_context, llama_context_params
from .headers.products cimport products
from .headers.pthread cimport pthread_mutex_t

cdef enum:
    MAX_WARMED = 8          # buffers of one context's caches

# Kept beside a llama_context, at an address that does not change; ctx is set once there is one.
cdef struct graph_t:
    llama_context *ctx
    int32_t n_vocab
    bint all_outputs        # llama.cpp gives outputs for every row, whatever the batch says
    int32_t n_outputs       # rows of logits the running llama_decode is to give
    ggml_tensor *logits     # the node that was given the output buffer, and its own memory; NULL: none
    void *own
    int64_t n_direct        # times that logits were not copied
    int64_t n_attention     # operations of new graphs that are ours
    bint warms              # memory that is zero is given back
    int64_t n_released      # bytes that were, of so many buffers
    ggml_backend_buffer *warmed[MAX_WARMED]
    int32_t n_warmed
    adapters *adapters      # NULL: none are told of
    products *products
    int64_t n_products      # products that were computed or are about to be, of all graphs
    bint plans              # llama.cpp is about to plan graphs anew
    pthread_mutex_t *planning   # held while it does: it looks at all the model's adapters

cdef int graph_init(graph_t *self, int32_t n_vocab, llama_context_params *params) noexcept nogil  # -1: no memory
cdef void graph_free(graph_t *self) noexcept nogil
# Adapters: what adapters.h documents. Nothing is taken where llama.cpp computes its graphs all by itself.
cdef int graph_take_adapters(graph_t *self) noexcept nogil      # 1: it does, 0: it does not, -1: no memory
cdef void graph_activate(graph_t *self, int n, const float *alphas, float *scales) noexcept nogil
cdef void graph_begin(
    graph_t *self, int32_t n_rows, const int32_t *tokens, const float *scaled, int32_t n_outputs,
    const int32_t *outputs, bint uniform
) noexcept nogil
cdef bint graph_failed(const graph_t *self) noexcept nogil
# The codes of llama_decode and llama_encode.
cdef int32_t graph_decode(graph_t *self, const llama_batch *batch) noexcept nogil
cdef int32_t graph_encode(graph_t *self, const llama_batch *batch) noexcept nogil
