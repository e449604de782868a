from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int32_t, int64_t

cdef struct buffer_t:
    char *bytes
    size_t used
    size_t capacity

cdef class Outbox:
    cdef buffer_t staged        # the engine thread's own
    cdef buffer_t published     # guarded by lock
    cdef buffer_t draining      # the reader's own
    cdef PyThread_type_lock lock
    cdef int wake_fd

cdef int outbox_stage(
    Outbox self, int64_t tag, const char *text, int32_t length, int32_t n_tokens, int32_t n_cached, int32_t finish
) noexcept nogil
cdef int outbox_publish(Outbox self) noexcept nogil
