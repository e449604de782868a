# Devices and types of buffers by their names, for whoever loads a model.
from .headers.llama cimport ggml_backend_buffer_type_t, ggml_backend_dev_t

cdef bint offloads() noexcept
cdef ggml_backend_dev_t device_named(str name) except NULL
cdef ggml_backend_buffer_type_t buffers_named(str name) except NULL
