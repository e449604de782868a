# A llama_context and a batch of rows, for whoever computes with them.
from libc.stdint cimport int32_t, uint8_t

from .adapters cimport AdapterGroups, groups_t
from .graph cimport graph_t
from .headers.llama cimport llama_batch, llama_context, llama_memory_t, llama_pos, llama_seq_id, llama_token
from .model cimport Model
from .team cimport team_t

# So many tokens no sequence has: no limit.
cpdef enum:
    UNLIMITED = 0x7FFFFFFF

cdef class Batch:
    cdef llama_batch batch
    cdef int32_t capacity       # rows

cdef int32_t batch_add(
    llama_batch *batch, llama_token token, llama_pos pos, llama_seq_id seq_id, bint output
) noexcept nogil

# What context_decode and context_encode give beside llama.cpp's codes.
cpdef enum:
    NO_ROOM_FOR_ADAPTERS = -1000
    GROUPS_APART = -1001        # a batch of groups that cannot be computed at one go
    ROWS_ASTRAY = -1002         # rows were given the adapters of others

cdef class Context:
    cdef readonly Model model
    cdef llama_context *ctx
    cdef llama_memory_t memory      # NULL for a model without memory
    cdef bint embeddings            # it gives embeddings, for every row
    cdef bint unified               # sequences share cells: seq_cp copies no data and takes any range
    # A sequence of up to so many tokens can be cut anywhere; a longer one goes on only from where its state was taken.
    cdef readonly int32_t n_cuttable
    cdef readonly int32_t n_undo    # so many of the last rows of a sequence can be taken back
    cdef int32_t scratch            # a sequence id beyond n_seq_max through which parts are moved, -1: none
    cdef graph_t graph
    cdef team_t team
    cdef groups_t *groups               # NULL: nobody has an adapter
    cdef AdapterGroups holder           # of these
    cdef dict state_sizes               # bytes of a state by its number of tokens

    cdef void set_group(self, int32_t seq_id, int32_t group) noexcept nogil
    cdef bytes state(self, int32_t seq_id, int32_t n_tokens)
    cdef bint set_state(self, int32_t seq_id, const uint8_t[::1] saved)
    cdef bytes save_part(self, int32_t seq_id, int32_t start, int32_t stop, int32_t n_tokens, bint rolled_back)
    cdef int put_recurrent(self, int32_t seq_id, bytes saved) except -1
    cdef bint restore_part(self, int32_t seq_id, const uint8_t[::1] saved, int32_t start, int32_t stop)

cdef int32_t context_decode(Context self, const llama_batch *batch) noexcept nogil      # llama_decode's code
cdef int32_t context_encode(Context self, const llama_batch *batch) noexcept nogil      # llama_encode's code
