# What products.h declares and documents.
from .llama cimport c_bool, ggml_tensor

cdef extern from "products.h" nogil:
    cdef struct products:
        pass
    int products_use(int limit)
    products *products_new()
    void products_free(products *self)
    void products_begin(products *self)
    c_bool products_take(products *self, ggml_tensor *node)
