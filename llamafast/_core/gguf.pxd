# The head of a GGUF.
from .headers.llama cimport ggml_context, gguf_context

cdef class Gguf:
    cdef gguf_context *gguf
    cdef ggml_context *tensors_of       # they have names, types and shapes, and no data
