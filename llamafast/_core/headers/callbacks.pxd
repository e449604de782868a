# Of ggml.h and llama.h what a graph on CPUs asks after each node: whether to abort.
from .llama cimport c_bool, llama_context

cdef extern from "llama.h" nogil:
    ctypedef c_bool (*ggml_abort_callback)(void *data) noexcept nogil
    void llama_set_abort_callback(llama_context *ctx, ggml_abort_callback callback, void *data)
