# How a failure of llama.cpp's gets llama.cpp's own words.
from .headers.llama cimport ggml_log_callback

cdef void forget_log() noexcept
cdef ggml_log_callback log_callback() noexcept
cdef int check_ptr(const void *pointer, str what) except -1
