# What runs as embeddings: the Embedder that inputs run in.
from libc.stdint cimport int32_t, int64_t

from .context cimport Batch, Context
from .cost cimport step_cost_t
from .headers.llama cimport LLAMA_MAX_SEQ
from .inputs cimport input_t
from .pace cimport pace_t

cdef class Embedder:
    cdef readonly Context context
    cdef Batch batch
    cdef list running               # Inputs in order of admission
    cdef input_t *states[LLAMA_MAX_SEQ]
    cdef int32_t n_running
    cdef list free_seq_ids
    cdef bint whole                 # an input must be computed in one step
    cdef readonly int32_t width     # numbers of a vector
    cdef readonly int32_t max_tokens
    cdef int32_t room               # tokens that may run at once
    cdef int32_t n_reserved         # tokens of the running inputs
    cdef int32_t pooling_type
    cdef bint encodes               # llama_encode instead of llama_decode
    cdef pace_t pace
    cdef step_cost_t cost
    cdef int64_t steps
    cdef int64_t n_inputs
    cdef int64_t n_tokens
    cdef double seconds
    cdef double last_step
