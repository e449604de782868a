"""A llama_context, its memory and its batches."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from .adapters cimport groups_begin, groups_new
from .graph cimport graph_decode, graph_encode, graph_failed, graph_free, graph_init, graph_t
from .headers.callbacks cimport llama_set_abort_callback
from .headers.clock cimport now
from .headers.llama cimport (
    LLAMA_MAX_SEQ, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, llama_batch_free, llama_batch_init,
    llama_context_default_params, llama_context_params, llama_free, llama_get_memory, llama_init_from_model,
    llama_memory_clear, llama_memory_seq_cp, llama_memory_seq_rm, llama_model_get_vocab, llama_n_batch, llama_n_ctx,
    llama_n_ctx_seq, llama_n_rs_seq, llama_n_seq_max, llama_n_threads, llama_n_threads_batch, llama_n_ubatch,
    llama_pooling_type, llama_set_n_threads, llama_state_seq_get_data_ext, llama_state_seq_get_size,
    llama_state_seq_get_size_ext, llama_state_seq_set_data, llama_synchronize, llama_vocab_n_tokens,
)
from .leaks cimport BATCH, CONTEXT, born, died
from .llama_log cimport check_ptr, forget_log
from .model cimport Model
from .progress cimport node_computed
from .team cimport team_choose, team_init, team_observe


cdef enum:
    # lengths of states whose sizes are remembered
    MAX_KNOWN_SIZES = 1024
    # A copy of so few bytes takes less than a tenth of a millisecond. Getting the GIL back takes up to 5 ms when the
    # event loop is busy, so such a copy keeps it.
    SHORT_COPY = 1 << 18
    # What stands before a sequence's state: a magic number and whose it was.
    STATE_HEAD = sizeof(uint32_t) + sizeof(int32_t)


cdef class Batch:
    """The arrays of one llama_decode call, allocated once for ``capacity`` rows of one sequence each."""

    def __cinit__(self, int32_t capacity):
        if capacity < 1:
            raise ValueError("a batch needs at least one row")
        born(BATCH)
        self.batch = llama_batch_init(capacity, 0, 1)
        self.capacity = capacity

    def __dealloc__(self):
        if self.capacity:
            llama_batch_free(self.batch)
            died(BATCH)

    def __len__(self):
        return self.batch.n_tokens

    def clear(self):
        self.batch.n_tokens = 0

    def add(self, llama_token token, llama_pos pos, llama_seq_id seq_id, bint output):
        """Append a row; with ``output`` its logits are computed. Raises IndexError when the batch is full."""
        if self.batch.n_tokens >= self.capacity:
            raise IndexError(f"the batch has room for {self.capacity} rows")
        batch_add(&self.batch, token, pos, seq_id, output)

    def advance(self):
        """Move every row one position on, as a decode loop with one token per sequence does."""
        cdef int32_t i
        for i in range(self.batch.n_tokens):
            self.batch.pos[i] += 1


cdef int32_t batch_add(
    llama_batch *batch, llama_token token, llama_pos pos, llama_seq_id seq_id, bint output
) noexcept nogil:
    """Append a row the caller knows there is room for; its index."""
    cdef int32_t i = batch.n_tokens
    batch.token[i] = token
    batch.pos[i] = pos
    batch.n_seq_id[i] = 1
    batch.seq_id[i][0] = seq_id
    batch.logits[i] = output
    batch.n_tokens = i + 1
    return i


cdef class Context:
    """Owns a llama_context and holds its Model. Keywords are fields of llama_context_params; None leaves llama.h's
    default. Not thread-safe: one thread at a time.

    With ``bare`` llama.cpp computes its graphs all by itself; without it some of their nodes are ours (see graph.pyx),
    which only CPUs can compute. None is ``bare`` where others do. With ``choose_threads`` a batch is computed by as
    many threads, up to ``n_threads``, as have been the fastest for batches of about its size (see team.pyx). Where
    sequences share cells, llama.cpp is given one sequence id more than ``n_seq_max`` (at most 255 then): parts of a
    sequence are saved and restored through it.

    Raises ModelLoadError with llama.cpp's reason, ValueError for more sequences than rows in a batch or nodes of ours
    where others than CPUs compute."""

    def __cinit__(
        self, Model model not None, *, n_ctx=None, n_batch=None, n_ubatch=None, n_seq_max=None,
        n_threads=None, n_threads_batch=None, rope_scaling_type=None, pooling_type=None, attention_type=None,
        flash_attn_type=None, embeddings=None, rope_freq_base=None, rope_freq_scale=None, yarn_ext_factor=None,
        yarn_attn_factor=None, yarn_beta_fast=None, yarn_beta_slow=None, yarn_orig_ctx=None, type_k=None, type_v=None,
        offload_kqv=None, no_perf=None, op_offload=None, swa_full=None, kv_unified=None, n_rs_seq=None,
        n_outputs_max=None, bare=None, bint choose_threads=False,
    ):
        cdef llama_context_params params = llama_context_default_params()
        self.model = model
        self.state_sizes = {}
        if n_ctx is not None: params.n_ctx = n_ctx
        if n_batch is not None: params.n_batch = n_batch
        if n_ubatch is not None: params.n_ubatch = n_ubatch
        if n_seq_max is not None: params.n_seq_max = n_seq_max
        if n_threads is not None: params.n_threads = n_threads
        if n_threads_batch is not None: params.n_threads_batch = n_threads_batch
        if rope_scaling_type is not None: params.rope_scaling_type = rope_scaling_type
        if pooling_type is not None: params.pooling_type = pooling_type
        if attention_type is not None: params.attention_type = attention_type
        if flash_attn_type is not None: params.flash_attn_type = flash_attn_type
        if embeddings is not None: params.embeddings = embeddings
        if rope_freq_base is not None: params.rope_freq_base = rope_freq_base
        if rope_freq_scale is not None: params.rope_freq_scale = rope_freq_scale
        if yarn_ext_factor is not None: params.yarn_ext_factor = yarn_ext_factor
        if yarn_attn_factor is not None: params.yarn_attn_factor = yarn_attn_factor
        if yarn_beta_fast is not None: params.yarn_beta_fast = yarn_beta_fast
        if yarn_beta_slow is not None: params.yarn_beta_slow = yarn_beta_slow
        if yarn_orig_ctx is not None: params.yarn_orig_ctx = yarn_orig_ctx
        if type_k is not None: params.type_k = type_k
        if type_v is not None: params.type_v = type_v
        if offload_kqv is not None: params.offload_kqv = offload_kqv
        if no_perf is not None: params.no_perf = no_perf
        if op_offload is not None: params.op_offload = op_offload
        if swa_full is not None: params.swa_full = swa_full
        if kv_unified is not None: params.kv_unified = kv_unified
        if n_rs_seq is not None: params.n_rs_seq = n_rs_seq
        if n_outputs_max is not None: params.n_outputs_max = n_outputs_max
        if params.n_rs_seq and min(params.n_ubatch, params.n_batch) <= params.n_rs_seq + 1:
            # the first step would abort the process
            raise ValueError(f"n_ubatch {params.n_ubatch} must be more than n_rs_seq {params.n_rs_seq} and one")
        if min(params.n_batch, params.n_ctx or params.n_batch) < params.n_seq_max:
            # llama.cpp aborts the process
            raise ValueError(f"n_batch {params.n_batch} or n_ctx {params.n_ctx} below n_seq_max {params.n_seq_max}")
        self.unified = params.kv_unified and not model.is_recurrent
        self.scratch = -1
        if self.unified and not params.embeddings:
            self.scratch = min(params.n_seq_max, LLAMA_MAX_SEQ - 1)
            params.n_seq_max = self.scratch + 1
            params.n_batch = max(params.n_batch, params.n_seq_max)
            if params.n_ctx and params.n_ctx < params.n_seq_max:
                raise ValueError(f"n_ctx {params.n_ctx} must be more than n_seq_max {self.scratch}")
        if params.n_outputs_max:
            # it aborts for fewer
            params.n_outputs_max = max(params.n_outputs_max, params.n_seq_max)
        if bare is None:
            bare = not model.on_cpu
        if not bare and not model.on_cpu:
            raise ValueError("only CPUs can compute nodes of ours")
        if not bare and graph_init(&self.graph, llama_vocab_n_tokens(llama_model_get_vocab(model.model)), &params) < 0:
            raise MemoryError
        forget_log()
        with nogil:
            self.ctx = llama_init_from_model(model.model, params)
        check_ptr(self.ctx, "cannot create a context")
        llama_set_abort_callback(self.ctx, node_computed, NULL)
        self.graph.ctx = self.ctx
        self.graph.planning = &model.adapters
        born(CONTEXT)
        if choose_threads:
            team_init(&self.team, params.n_threads)
        self.memory = llama_get_memory(self.ctx)
        self.embeddings = params.embeddings
        if model.is_recurrent or model.is_hybrid:
            self.n_cuttable = 0
            # where sequences have partitions a step has several passes, and each but the last moves states
            self.n_undo = <int32_t> llama_n_rs_seq(self.ctx) if self.unified else 0
        else:
            self.n_undo = UNLIMITED
            # What the next token's sliding window leaves behind others may take the cells of, and a saved state lacks
            # it, whatever swa_full says: of a sequence that fills the window that is its first token.
            self.n_cuttable = max(model.n_swa - 1, 1) if model.n_swa else UNLIMITED

    def __dealloc__(self):
        if self.ctx != NULL:
            llama_free(self.ctx)
            died(CONTEXT)
        graph_free(&self.graph)

    @property
    def n_ctx(self):
        return llama_n_ctx(self.ctx)

    @property
    def n_ctx_seq(self):
        """Cells one sequence can use: n_ctx when unified, its share when partitioned."""
        return llama_n_ctx_seq(self.ctx)

    @property
    def n_batch(self):
        return llama_n_batch(self.ctx)

    @property
    def n_ubatch(self):
        return llama_n_ubatch(self.ctx)

    @property
    def n_seq_max(self):
        """Ids for sequences: 0 to n_seq_max - 1."""
        return llama_n_seq_max(self.ctx) if self.scratch < 0 else self.scratch

    @property
    def in_parts(self):
        """Whether a sequence's state can be saved and restored in parts."""
        return self.scratch >= 0

    @property
    def n_threads(self):
        return llama_n_threads(self.ctx)

    @property
    def n_threads_batch(self):
        return llama_n_threads_batch(self.ctx)

    @property
    def pooling_type(self):
        """enum llama_pooling_type."""
        return llama_pooling_type(self.ctx)

    @property
    def has_memory(self):
        return self.memory != NULL

    @property
    def on_cpu(self):
        """Whether CPUs compute all of it, and hold all of its memory."""
        return self.model.on_cpu

    @property
    def mixes(self):
        """Whether a batch may have rows of several groups of adapters, up to n_ubatch rows."""
        in_order = self.unified and not self.model.is_hybrid and self.n_ubatch >= self.n_seq_max
        return self.graph.products != NULL and in_order

    @property
    def adapters(self):
        """The groups that its rows may be of, once somebody has asked for them."""
        if self.holder is None:
            self.holder = groups_new(self.model, self.ctx, &self.graph, self.embeddings)
            self.groups = &self.holder.state
        return self.holder

    cdef void set_group(self, int32_t seq_id, int32_t group) noexcept nogil:
        """What a sequence id computes has these adapters from now on."""
        if self.groups != NULL:
            self.groups.group_of[seq_id] = group

    def warm_up(self, llama_token token):
        """Compute one token and forget it: weights are read, and memory of the cache that nothing was written to is
        given back, so many bytes. Nothing may run. RuntimeError: llama_decode's code was not 0."""
        cdef Batch batch = Batch(1)
        cdef int32_t code
        batch_add(&batch.batch, token, 0, 0, True)
        self.graph.warms = True
        with nogil:
            code = context_decode(self, &batch.batch)
        self.graph.warms = False
        self.clear()
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        return self.graph.n_released

    def decode(self, Batch batch not None):
        """llama_decode's code: 0 done, 1 no room (nothing changed), 2 aborted, -1 bad batch, < -1 fatal."""
        cdef int32_t code
        with nogil:
            code = context_decode(self, &batch.batch)
            llama_synchronize(self.ctx)
        return code

    def clear(self):
        """Empty the memory of every sequence."""
        llama_memory_clear(self.memory, False)

    cdef bytes state(self, int32_t seq_id, int32_t n_tokens):
        """The state of all that ``seq_id`` has in memory: ``n_tokens`` tokens, from which its size follows where it can
        be cut anywhere. To ask for that costs about as much as a small state itself."""
        cdef object known = self.state_sizes.get(n_tokens)
        cdef size_t size = llama_state_seq_get_size(self.ctx, seq_id) if known is None else known
        cdef bytes saved = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> size)
        cdef uint8_t *data = <uint8_t *> <char *> saved
        cdef size_t written = get_state(self, seq_id, data, size, 0)
        if written != size:
            self.state_sizes.clear()
            raise AssertionError(f"llama_state_seq_get_data wrote {written} of {size} bytes")
        if self.n_cuttable == UNLIMITED and n_tokens <= MAX_KNOWN_SIZES:
            self.state_sizes[n_tokens] = size
        return saved

    cdef bint set_state(self, int32_t seq_id, const uint8_t[::1] saved):
        """Replace all that ``seq_id`` has in memory; False where llama.cpp does not take it."""
        cdef size_t size = <size_t> saved.shape[0]
        cdef const uint8_t *data = &saved[0] if size else NULL
        cdef size_t read
        if size <= SHORT_COPY:
            read = llama_state_seq_set_data(self.ctx, data, size, seq_id)
        else:
            with nogil:
                read = llama_state_seq_set_data(self.ctx, data, size, seq_id)
        return read != 0

    cdef bytes save_part(self, int32_t seq_id, int32_t start, int32_t stop, int32_t n_tokens, bint rolled_back):
        """The state of a sequence's positions [start, stop), ``n_tokens`` tokens, where there is a scratch sequence.
        What was ``rolled_back`` is copied with the recurrent state that it had before: that is taken from itself."""
        llama_memory_seq_cp(self.memory, seq_id, self.scratch, start, stop)
        try:
            saved = self.state(self.scratch, n_tokens)
            if rolled_back:
                self.put_recurrent(seq_id, saved)
            return saved
        finally:
            llama_memory_seq_rm(self.memory, self.scratch, -1, -1)

    cdef int put_recurrent(self, int32_t seq_id, bytes saved) except -1:
        """Let the recurrent part of ``saved``, which is the scratch sequence's and fresh from llama.cpp, be that of
        another sequence at the same place. A state is a head, what can be cut, and the recurrent part at its end; one
        of the recurrent part alone has the same head."""
        cdef size_t size = llama_state_seq_get_size_ext(self.ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        cdef bytes part = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> size)
        cdef uint8_t *data = <uint8_t *> <char *> part
        if (
            size != llama_state_seq_get_size_ext(self.ctx, self.scratch, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
            or not STATE_HEAD < size <= <size_t> len(saved)
            or get_state(self, seq_id, data, size, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != size
        ):
            raise AssertionError(f"a recurrent state of {size} bytes in one of {len(saved)}")
        size -= STATE_HEAD
        memcpy(<char *> saved + <size_t> len(saved) - size, data + STATE_HEAD, size)
        return 0

    cdef bint restore_part(self, int32_t seq_id, const uint8_t[::1] saved, int32_t start, int32_t stop):
        """Give a sequence that ends at ``start`` the positions up to ``stop`` of a saved part, as far as it has them;
        False where llama.cpp does not take it."""
        cdef bint done = self.set_state(self.scratch, saved)
        if done:
            llama_memory_seq_cp(self.memory, self.scratch, seq_id, start, stop)
        llama_memory_seq_rm(self.memory, self.scratch, -1, -1)
        return done


cdef size_t get_state(Context self, int32_t seq_id, uint8_t *data, size_t size, uint32_t flags) noexcept:
    """llama_state_seq_get_data_ext."""
    if size <= SHORT_COPY:
        return llama_state_seq_get_data_ext(self.ctx, data, size, seq_id, flags)
    with nogil:
        return llama_state_seq_get_data_ext(self.ctx, data, size, seq_id, flags)


cdef int32_t context_decode(Context self, const llama_batch *batch) noexcept nogil:
    """llama_decode's code."""
    return compute(self, batch, graph_decode)


cdef int32_t context_encode(Context self, const llama_batch *batch) noexcept nogil:
    """llama_encode's code."""
    return compute(self, batch, graph_encode)


cdef int32_t compute(
    Context self, const llama_batch *batch, int32_t (*run)(graph_t *, const llama_batch *) noexcept nogil
) noexcept nogil:
    cdef int32_t code, size = set_threads(self, batch)
    cdef double start = now()
    if self.groups != NULL and (code := groups_begin(self.groups, batch)) < 0:
        return NO_ROOM_FOR_ADAPTERS if code == -1 else GROUPS_APART
    code = run(&self.graph, batch)
    if code == 0 and graph_failed(&self.graph):
        return ROWS_ASTRAY
    observe_threads(self, batch, size, start, code)
    return code


cdef int32_t set_threads(Context self, const llama_batch *batch) noexcept nogil:
    cdef int32_t size, n_threads
    if self.team.n_sizes < 2:
        return 0
    size = team_choose(&self.team, batch.n_tokens)
    n_threads = self.team.sizes[size]
    if n_threads != llama_n_threads(self.ctx):
        llama_set_n_threads(self.ctx, n_threads, n_threads)
    return size


cdef void observe_threads(
    Context self, const llama_batch *batch, int32_t size, double start, int32_t code
) noexcept nogil:
    """CPUs have computed everything when llama.cpp returns; who has GPUs lets nobody choose."""
    if self.team.n_sizes >= 2 and code == 0:
        team_observe(&self.team, batch.n_tokens, size, now() - start)
