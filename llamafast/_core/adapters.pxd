# Adapters of a context, in groups: what a sequence has.
from libc.stdint cimport int32_t, int64_t

from .graph cimport graph_t
from .headers.adapters cimport MAX_ADAPTERS
from .headers.llama cimport LLAMA_MAX_SEQ, llama_adapter_lora, llama_batch, llama_context
from .model cimport Model

cpdef enum:
    MAX_GROUPS = 128

cdef class Adapter:
    cdef readonly Model model
    cdef llama_adapter_lora *adapter
    cdef readonly float alpha

    cpdef void release(self)

cdef struct group_t:
    int32_t n
    llama_adapter_lora *adapters[MAX_ADAPTERS]
    float alphas[MAX_ADAPTERS]
    float scales[MAX_ADAPTERS]

# Of one context. Where rows ``differ`` its graphs are ours (see c/adapters.h), else llama.cpp scales what it is given.
cdef struct groups_t:
    llama_context *ctx
    graph_t *graph
    bint differ
    group_t groups[MAX_GROUPS]              # the first one is empty
    int32_t group_of[LLAMA_MAX_SEQ]         # by sequence id
    bint all_outputs
    group_t active                          # what llama.cpp was given
    int32_t unused[MAX_ADAPTERS]            # batches since anybody had it
    float *scaled                           # (adapters, rows of a batch)
    int32_t *outputs
    int32_t capacity                        # rows
    int64_t n_changes                       # how often llama.cpp was given others

cdef int groups_begin(groups_t *self, const llama_batch *batch) noexcept nogil   # -1: no memory, -2: not at one go

cdef class AdapterGroups:
    cdef groups_t state
    cdef Model model
    cdef dict members                       # the adapters of each group, which it holds

cdef AdapterGroups groups_new(Model model, llama_context *ctx, graph_t *graph, bint all_outputs)
