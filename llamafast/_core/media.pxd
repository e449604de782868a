# A step's rows of media, as llama_decode takes them.
from libc.stdint cimport int32_t

from .context cimport Context
from .cost cimport step_cost_t
from .headers.llama cimport llama_batch
from .live cimport live_t
from .sequence cimport sequence_t
from .spans cimport span_t

cdef class MediaBatch:
    cdef Context context
    cdef llama_batch batch
    cdef int32_t width          # floats of a row
    cdef int32_t n_planes       # positions of a row
    cdef int32_t n_ubatch
    cdef int32_t capacity
    cdef step_cost_t cost       # of such steps

cdef sequence_t *media_next(const live_t *live) noexcept nogil
cdef int32_t media_fill(MediaBatch self, sequence_t *s, const span_t *span, int32_t most) noexcept nogil
cdef int32_t media_decode(MediaBatch self, const span_t *span) noexcept nogil
