# How a failure of llama.cpp's gets llama.cpp's own words.
cdef void forget_log() noexcept
cdef int check_ptr(const void *pointer, str what) except -1
