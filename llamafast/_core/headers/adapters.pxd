# What adapters.h declares and documents.
from libc.stdint cimport int32_t

from .llama cimport c_bool, ggml_tensor

cdef extern from "adapters.h" nogil:
    enum: MAX_ADAPTERS
    cdef struct adapters:
        pass
    int adapters_use(int limit)
    adapters *adapters_new()
    void adapters_free(adapters *self)
    void adapters_activate(adapters *self, int n, const float *alphas, float *scales)
    void adapters_begin(
        adapters *self, int32_t n_rows, const int32_t *tokens, const float *scaled, int32_t n_outputs,
        const int32_t *outputs, c_bool uniform)
    c_bool adapters_take(adapters *self, ggml_tensor *node)
    c_bool adapters_failed(const adapters *self)
