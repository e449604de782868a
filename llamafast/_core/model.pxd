from .headers.llama cimport llama_model

cdef class Model:
    cdef llama_model *model
