"""What is done otherwise than llama.cpp does it, in the graphs that it computes.

Its scheduler shows each node of a graph to a callback before any of them is computed, and there

- attention becomes an operation of ours (c/attention.h), and so do products with quantised weights (c/products.h) and
  the branches of adapters (c/adapters.h);
- logits are computed where they are read. llama_decode copies them from the graph to its output buffer: 10 MB for 16
  rows of a large vocabulary, a seventh of a small model's step. Here the node of the logits gets the output buffer for
  its own memory, and llama_decode copies that onto itself, for which glibc's memcpy does nothing;
- memory for keys and values, which llama.cpp fills with zeros at first, is given back until it is used.
"""
from libc.string cimport strcmp

from .headers.adapters cimport (
    adapters_activate, adapters_begin, adapters_failed, adapters_free, adapters_new, adapters_take, adapters_use,
)
from .headers.attention cimport attention_take, attention_use
from .headers.llama cimport (
    GGML_OP_FLASH_ATTN_EXT, GGML_TYPE_F32, c_bool, ggml_backend_buffer, ggml_backend_buffer_get_base,
    ggml_backend_buffer_get_size, ggml_backend_buffer_get_type, ggml_backend_buffer_is_host,
    ggml_backend_cpu_buffer_type, ggml_is_contiguous, ggml_nrows, ggml_tensor, llama_decode, llama_encode,
    llama_get_logits,
)
from .headers.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from .headers.products cimport products_begin, products_free, products_new, products_take, products_use
from .headers.zero_pages cimport zero_pages_release
from .simd cimport simd_limit

adapters_use(simd_limit())
attention_use(simd_limit())
products_use(simd_limit())


cdef int graph_init(graph_t *self, int32_t n_vocab, llama_context_params *params) noexcept nogil:
    """Ask for the callback. All nodes are computed by CPUs: what else a backend may hold about a node's memory is its
    own. ``self`` is zeroed. -1: out of memory."""
    self.products = products_new()
    if self.products == NULL:
        return -1
    self.n_vocab = n_vocab
    self.all_outputs = params.embeddings
    params.cb_eval = change
    params.cb_eval_user_data = self
    return 0


cdef void graph_free(graph_t *self) noexcept nogil:
    products_free(self.products)
    adapters_free(self.adapters)


cdef int graph_take_adapters(graph_t *self) noexcept nogil:
    if self.products == NULL:
        return 0
    if self.adapters == NULL:
        self.adapters = adapters_new()
    return 1 if self.adapters != NULL else -1


cdef void graph_activate(graph_t *self, int n, const float *alphas, float *scales) noexcept nogil:
    adapters_activate(self.adapters, n, alphas, scales)


cdef void graph_begin(
    graph_t *self, int32_t n_rows, const int32_t *tokens, const float *scaled, int32_t n_outputs,
    const int32_t *outputs, bint uniform
) noexcept nogil:
    adapters_begin(self.adapters, n_rows, tokens, scaled, n_outputs, outputs, uniform)


cdef bint graph_failed(const graph_t *self) noexcept nogil:
    return self.adapters != NULL and adapters_failed(self.adapters)


cdef int32_t graph_decode(graph_t *self, const llama_batch *batch) noexcept nogil:
    cdef int32_t i, code
    for i in range(batch.n_tokens):
        self.n_outputs += self.all_outputs or batch.logits[i] != 0
    if self.products != NULL:
        products_begin(self.products)
    code = run(self, batch, llama_decode)
    self.n_outputs = 0
    if self.logits != NULL:
        # The graph may be used again, when the output buffer is another. It still exists: a micro-batch without outputs
        # does not take the place of the one that had all of them.
        self.logits.data = self.own
        self.logits = NULL
    return code


cdef int32_t graph_encode(graph_t *self, const llama_batch *batch) noexcept nogil:
    if self.products != NULL:
        products_begin(self.products)
    return run(self, batch, llama_encode)


cdef int32_t run(
    graph_t *self, const llama_batch *batch, int32_t (*compute)(llama_context *, llama_batch) noexcept nogil
) noexcept nogil:
    """Have a batch computed; by ``plans`` llama.cpp makes room first for graphs with all the model's adapters."""
    cdef int32_t code
    if not self.plans:
        return compute(self.ctx, batch[0])
    pthread_mutex_lock(self.planning)
    code = compute(self.ctx, batch[0])
    pthread_mutex_unlock(self.planning)
    self.plans = code != 0
    return code


cdef c_bool change(ggml_tensor *node, c_bool ask, void *data) noexcept nogil:
    """ggml's eval callback. False: no node need be shown when it is computed."""
    cdef graph_t *self = <graph_t *> data
    if node.op == GGML_OP_FLASH_ATTN_EXT:
        if self.warms:
            release(self, node.src[1])
        self.n_attention += attention_take(node)
        return False
    if self.adapters != NULL and adapters_take(self.adapters, node):
        return False
    self.n_products += products_take(self.products, node)
    if self.n_outputs and strcmp(node.name, "result_output") == 0 and holds_all(self, node):
        self.logits = node
        self.own = node.data
        node.data = llama_get_logits(self.ctx)
        self.n_direct += 1
    return False


cdef void release(graph_t *self, const ggml_tensor *keys) noexcept nogil:
    """Give back the zeros of the cache that ``keys`` are a view of, once; nodes before may have written to it."""
    cdef int32_t i
    cdef ggml_backend_buffer *buffer = keys.view_src.buffer if keys.view_src != NULL else NULL
    if buffer == NULL or ggml_backend_buffer_get_type(buffer) != ggml_backend_cpu_buffer_type():
        return
    for i in range(self.n_warmed):
        if self.warmed[i] == buffer:
            return
    if self.n_warmed < MAX_WARMED:
        self.warmed[self.n_warmed] = buffer
        self.n_warmed += 1
        self.n_released += zero_pages_release(
            ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer)
        )


cdef bint holds_all(const graph_t *self, const ggml_tensor *node) noexcept nogil:
    """Whether a node has all logits of the batch, as the output buffer has them.

    The buffer is made for so many rows before the graph is computed. Several micro-batches that give logits each do not
    pass: only llama_decode knows where those of the second begin.
    """
    return (
        node.type == GGML_TYPE_F32 and node.ne[0] == self.n_vocab and ggml_nrows(node) == self.n_outputs
        and node.view_src == NULL and ggml_is_contiguous(node) and ggml_backend_buffer_is_host(node.buffer)
    )
