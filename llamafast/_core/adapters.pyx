"""Low-rank adapters: which of them each row of a batch has.

A group is the adapters of a sequence, each with its scale. Where CPUs compute, a batch has rows of any groups, and
llama.cpp is told of an adapter when the first row comes that has it (see c/adapters.h); elsewhere a batch is of one.
"""
cimport cython
from libc.stdint cimport int32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from .graph cimport graph_activate, graph_begin, graph_t, graph_take_adapters
from .headers.adapters cimport MAX_ADAPTERS
from .headers.llama cimport (
    llama_adapter_lora, llama_adapter_lora_free, llama_adapter_lora_init, llama_batch, llama_context,
    llama_set_adapters_lora,
)
from .headers.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from .leaks cimport ADAPTER, born, died
from .llama_log cimport check_ptr, forget_log
from .model cimport Model

cdef enum:
    # An adapter that nobody has costs each batch a little, and to forget it a plan of the graph: after so many batches.
    LET_GO = 32


# no_gc_clear: to free it takes its model
@cython.no_gc_clear
cdef class Adapter:
    """A GGUF of type adapter, loaded beside a Model; ``alpha`` is what it says of itself, 0 where it says nothing. Any
    thread: only a step whose graphs have to be planned waits meanwhile.

    The caller has seen that the file is as it should be: llama.cpp aborts over some that are not. Raises ModelLoadError
    with llama.cpp's reason.
    """

    def __cinit__(self, Model model not None, str path not None, float alpha):
        cdef bytes raw_path = path.encode()
        cdef const char *c_path = raw_path
        self.model = model
        self.alpha = alpha
        forget_log()
        with nogil:
            pthread_mutex_lock(&model.adapters)
            self.adapter = llama_adapter_lora_init(model.model, c_path)
            pthread_mutex_unlock(&model.adapters)
        check_ptr(self.adapter, f"cannot load the adapter {path}")
        born(ADAPTER)

    def __dealloc__(self):
        self.release()

    cpdef void release(self):
        """Free its memory now; it may wait for a step that plans its graphs. Nothing may hold it any more."""
        cdef llama_adapter_lora *adapter = self.adapter
        if adapter == NULL:
            return
        self.adapter = NULL
        with nogil:
            pthread_mutex_lock(&self.model.adapters)
            llama_adapter_lora_free(adapter)
            pthread_mutex_unlock(&self.model.adapters)
        died(ADAPTER)


cdef class AdapterGroups:
    """What the groups of one context stand for."""

    def __cinit__(self):
        self.members = {}

    def __dealloc__(self):
        free(self.state.scaled)
        free(self.state.outputs)

    def define(self, int32_t group, list members not None):
        """What ``group`` (1 to MAX_GROUPS - 1) stands for: pairs of an Adapter and its scale. Nobody may have it.
        Raises ValueError for another model's, for more than MAX_ADAPTERS and for one that is there twice."""
        cdef group_t *defined
        cdef Adapter adapter
        cdef int32_t i
        if not 0 < group < MAX_GROUPS or len(members) > MAX_ADAPTERS:
            raise ValueError(f"group {group} of {len(members)} adapters")
        if len({adapter for adapter, _ in members}) < len(members):
            raise ValueError("an adapter that is there twice")
        if any((<Adapter?> one).model is not self.model or (<Adapter> one).adapter == NULL for one, _ in members):
            raise ValueError("an adapter of another model, or one that was released")
        defined = &self.state.groups[group]
        defined.n = 0
        for i in range(<int32_t> len(members)):
            adapter, scale = members[i]
            defined.adapters[i] = adapter.adapter
            defined.alphas[i] = adapter.alpha
            defined.scales[i] = scale
        defined.n = <int32_t> len(members)
        self.members[group] = members

    def forget(self, Adapter adapter not None):
        """Hold an adapter no more, and have llama.cpp hold it no more. Between two batches; nobody may have a group
        that it is in."""
        cdef group_t others
        cdef int32_t i
        others.n = 0
        for i in range(self.state.active.n):
            if self.state.active.adapters[i] != adapter.adapter:
                others.adapters[others.n] = self.state.active.adapters[i]
                others.alphas[others.n] = self.state.active.alphas[i]
                others.scales[others.n] = self.state.active.scales[i]
                others.n += 1
        if others.n < self.state.active.n:
            activate(&self.state, &others)
        for group, members in list(self.members.items()):
            if any(one is adapter for one, _ in members):
                del self.members[group]
                self.state.groups[group].n = 0


cdef AdapterGroups groups_new(Model model, llama_context *ctx, graph_t *graph, bint all_outputs):
    """Those of a context that have none yet; it gives outputs for all rows, whatever a batch says, or not."""
    cdef AdapterGroups self = AdapterGroups()
    cdef int differ = graph_take_adapters(graph)
    if differ < 0:
        raise MemoryError
    self.model = model
    self.state.ctx = ctx
    self.state.graph = graph
    self.state.all_outputs = all_outputs
    self.state.differ = differ
    return self


cdef int groups_begin(groups_t *self, const llama_batch *batch) noexcept nogil:
    """A batch is going to be computed: 0, -1 when out of memory, -2 where its groups cannot be computed at one go.
    ``group_of`` says whose its rows are."""
    cdef int32_t i, k, row, n_outputs = 0
    cdef bint uniform = True
    cdef const group_t *group
    cdef const group_t *first = &self.groups[self.group_of[batch.seq_id[0][0]]]
    for row in range(1, batch.n_tokens):
        uniform = uniform and self.group_of[batch.seq_id[row][0]] == self.group_of[batch.seq_id[0][0]]
    if not self.differ:
        if not uniform:
            return -2
        if not is_active(self, first):
            activate(self, first)
        return 0
    if not make_active(self, batch):
        return -2
    if self.active.n == 0:
        graph_begin(self.graph, 0, NULL, NULL, 0, NULL, True)
        return 0
    if self.capacity < batch.n_tokens and grow(self, batch.n_tokens) < 0:
        return -1
    memset(self.scaled, 0, <size_t> (self.active.n * batch.n_tokens) * sizeof(float))
    for row in range(batch.n_tokens):
        group = &self.groups[self.group_of[batch.seq_id[row][0]]]
        for i in range(group.n):
            k = place(self, group.adapters[i])
            self.scaled[k * batch.n_tokens + row] = group.scales[i]
        if self.all_outputs or batch.logits[row]:
            self.outputs[n_outputs] = row
            n_outputs += 1
    graph_begin(self.graph, batch.n_tokens, batch.token, self.scaled, n_outputs, self.outputs, uniform)
    return 0


cdef int grow(groups_t *self, int32_t n_rows) noexcept nogil:
    cdef float *scaled = <float *> realloc(self.scaled, <size_t> (MAX_ADAPTERS * n_rows) * sizeof(float))
    cdef int32_t *outputs
    if scaled == NULL:
        return -1
    self.scaled = scaled
    outputs = <int32_t *> realloc(self.outputs, <size_t> n_rows * sizeof(int32_t))
    if outputs == NULL:
        return -1
    self.outputs = outputs
    self.capacity = n_rows
    return 0


cdef int32_t place(const groups_t *self, const llama_adapter_lora *adapter) noexcept nogil:
    """Where it is among the active ones, -1: it is none."""
    cdef int32_t k
    for k in range(self.active.n):
        if self.active.adapters[k] == adapter:
            return k
    return -1


cdef bint make_active(groups_t *self, const llama_batch *batch) noexcept nogil:
    """Give llama.cpp the adapters of all rows; False where these are too many. Others stay for a while."""
    cdef int32_t i, k, row, seq_id, last = -1
    cdef bint changes = False
    cdef const group_t *group
    cdef group_t wanted
    wanted.n = 0
    for k in range(self.active.n):
        self.unused[k] += 1
    for row in range(batch.n_tokens):
        seq_id = batch.seq_id[row][0]
        if seq_id == last:
            continue
        last = seq_id
        group = &self.groups[self.group_of[seq_id]]
        for i in range(group.n):
            k = place(self, group.adapters[i])
            if k >= 0:
                self.unused[k] = 0
            elif not add(&wanted, group.adapters[i], group.alphas[i]):
                return False
    for k in range(self.active.n):
        changes = changes or self.unused[k] > LET_GO
    if not (wanted.n or changes):
        return True
    for k in range(self.active.n):
        # whoever is wanted comes first; what nobody had lately leaves on the occasion
        if self.unused[k] == 0 and not add(&wanted, self.active.adapters[k], self.active.alphas[k]):
            return False
    activate(self, &wanted)
    return True


cdef bint add(group_t *group, llama_adapter_lora *adapter, float alpha) noexcept nogil:
    """False where there is no room."""
    cdef int32_t i
    for i in range(group.n):
        if group.adapters[i] == adapter:
            return True
    if group.n == MAX_ADAPTERS:
        return False
    group.adapters[group.n] = adapter
    group.alphas[group.n] = alpha
    group.scales[group.n] = 1
    group.n += 1
    return True


cdef bint is_active(const groups_t *self, const group_t *group) noexcept nogil:
    cdef int32_t i
    if group.n != self.active.n:
        return False
    for i in range(group.n):
        if group.adapters[i] != self.active.adapters[i] or group.scales[i] != self.active.scales[i]:
            return False
    return True


cdef void activate(groups_t *self, const group_t *group) noexcept nogil:
    """Give llama.cpp these adapters and no others."""
    self.active = group[0]
    memset(self.unused, 0, sizeof(self.unused))
    if self.differ:
        graph_activate(self.graph, self.active.n, self.active.alphas, self.active.scales)
    llama_set_adapters_lora(self.ctx, self.active.adapters, <size_t> self.active.n, self.active.scales)
    self.graph.plans = True
    self.n_changes += 1
