"""Which tensors of an adapter llama.cpp's graphs use: its loader takes a pair for any weight, its graphs only some."""
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport strcmp, strlen

from .adapters cimport Adapter
from .headers.llama cimport (
    GGML_OP_MUL_MAT, GGML_OP_MUL_MAT_ID, c_bool, ggml_tensor, llama_batch, llama_batch_get_one, llama_context,
    llama_context_default_params, llama_context_params, llama_decode, llama_encode, llama_free, llama_init_from_model,
    llama_model_has_encoder, llama_set_adapters_lora,
)
from .headers.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from .llama_log cimport check_ptr, forget_log

cdef enum:
    ROWS = 8        # the least that a context is made for
    HALF = 7        # the length of .lora_b


cdef struct met_t:
    const char **names      # of the second halves that a graph multiplies with
    int32_t n, capacity


cdef c_bool meet(ggml_tensor *node, c_bool ask, void *data) noexcept nogil:
    """ggml's eval callback."""
    cdef met_t *met = <met_t *> data
    cdef size_t length
    cdef const char *name
    if (node.op == GGML_OP_MUL_MAT or node.op == GGML_OP_MUL_MAT_ID) and met.n < met.capacity:
        name = node.src[0].name
        length = strlen(name)
        if length > HALF and strcmp(name + length - HALF, b".lora_b") == 0:
            met.names[met.n] = name
            met.n += 1
    return False


def used_tensors(Adapter adapter not None, int32_t n_pairs):
    """The weights that a graph computes with this adapter, of the ``n_pairs`` that it has. Any thread; takes the time
    of a small context and one token. Raises ModelLoadError."""
    cdef llama_context_params params = llama_context_default_params()
    cdef llama_context *ctx
    cdef llama_batch batch
    cdef int32_t token = 0, i, code = 0
    cdef bint encodes = llama_model_has_encoder(adapter.model.model)
    cdef bytes name
    cdef float scale = 1
    cdef met_t met
    met.n = 0
    met.capacity = 4 * n_pairs + ROWS
    met.names = <const char **> malloc(<size_t> met.capacity * sizeof(char *))
    if met.names == NULL:
        raise MemoryError
    params.n_ctx = params.n_batch = params.n_ubatch = ROWS
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = meet
    params.cb_eval_user_data = &met
    forget_log()
    with nogil:
        pthread_mutex_lock(&adapter.model.adapters)
        ctx = llama_init_from_model(adapter.model.model, params)
        if ctx != NULL:
            llama_set_adapters_lora(ctx, &adapter.adapter, 1, &scale)
            batch = llama_batch_get_one(&token, 1)
            # what was met while room was made is met again
            met.n = 0
            code = llama_encode(ctx, batch) if encodes else llama_decode(ctx, batch)
        pthread_mutex_unlock(&adapter.model.adapters)
    try:
        check_ptr(ctx, "cannot create a context for an adapter")
        if code != 0:
            check_ptr(NULL, f"the model does not compute with the adapter, code {code}")
        names = [<bytes> met.names[i] for i in range(met.n)]
        return {name[: len(name) - HALF].decode() for name in names}
    finally:
        free(met.names)
        if ctx != NULL:
            with nogil:
                llama_free(ctx)
