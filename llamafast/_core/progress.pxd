# What llama.cpp is to call as it comes further.
from .headers.llama cimport c_bool

cdef c_bool node_computed(void *data) noexcept nogil
cdef c_bool weights_read(float fraction, void *data) noexcept nogil
