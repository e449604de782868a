# What attention.h declares and documents.
from .llama cimport c_bool, ggml_tensor

cdef extern from "attention.h" nogil:
    int attention_use(int limit)
    c_bool attention_take(ggml_tensor *node)
