"""Drafts of a model's own head for the tokens after the next (MTP; NextN in llama.cpp).

The head takes a token and the hidden row of the one before it, which llama.cpp gives beside the logits; it says the
token after, and its own hidden row, with which it goes on. Its memory is a context of its own and may begin at any
position: where tokens were computed whose hidden rows nobody kept, it begins anew behind them.

What it needs of llama.cpp is in no public header. Its symbols are looked up by their mangled names, here and nowhere
else; where one is missing ``available`` says so, and nobody drafts by a head.
"""
cimport cython
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from .context cimport UNLIMITED, Context
from .headers.llama cimport (
    LLAMA_CONTEXT_TYPE_MTP, c_bool, llama_batch_init, llama_context, llama_context_default_params,
    llama_context_params, llama_decode, llama_free, llama_get_memory, llama_init_from_model, llama_memory_clear,
    llama_memory_seq_rm, llama_model_get_vocab, llama_model_n_embd_out, llama_model_n_layer_nextn, llama_n_ctx,
    llama_n_seq_max, llama_vocab_n_tokens,
)
from .leaks cimport HEAD, born, died
from .llama_log cimport check_ptr, forget_log
from .model cimport Model
from .proposer cimport Proposer, proposer_row
from .sequence cimport sequence_position, sequence_t

ctypedef void (*set_nextn_t)(llama_context *ctx, c_bool on, c_bool masked) noexcept nogil
ctypedef float *(*get_nextn_t)(llama_context *ctx, int32_t row) noexcept nogil

# llama.cpp is loaded already, by this name.
cdef void *library = dlopen(b"libllama.so.0", RTLD_LAZY)
cdef set_nextn_t set_nextn = NULL
cdef get_nextn_t get_nextn = NULL
if library != NULL:
    set_nextn = <set_nextn_t> dlsym(library, b"_Z26llama_set_embeddings_nextnP13llama_contextbb")
    get_nextn = <get_nextn_t> dlsym(library, b"_Z30llama_get_embeddings_nextn_ithP13llama_contexti")


def available():
    """Whether this llama.cpp has what a Head needs."""
    return set_nextn != NULL and get_nextn != NULL


# no_gc_clear: to free it takes the context that it drafts for
@cython.no_gc_clear
cdef class Head(Proposer):
    """The head that ``model`` has, beside a context of the model that it drafts for, which may be the same one.
    ``least`` is the probability below which a token is not drafted. RuntimeError without
    ``available``, ValueError for a model without a head, ModelLoadError with llama.cpp's reason.
    """

    def __cinit__(
        self, Context target not None, Model model not None, *, int n_threads, int n_threads_batch, float least
    ):
        cdef llama_context_params params = llama_context_default_params()
        if not available():
            raise RuntimeError("this llama.cpp lacks what heads need")
        # llama.cpp aborts where heads were left out of what it loaded
        if llama_model_n_layer_nextn(model.model) < 1 or not model.with_heads:
            raise ValueError("the model has no head that drafts")
        self.width = llama_model_n_embd_out(target.model.model)
        self.n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.model))
        if (llama_model_n_embd_out(model.model) != self.width
                or self.n_vocab != llama_vocab_n_tokens(llama_model_get_vocab(target.model.model))):
            raise ValueError("the head is another model's")
        self.target = target
        self.model = model
        self.least = least
        self.n_seq_max = <int32_t> llama_n_seq_max(target.ctx)
        self.capacity = 4 * KEPT + self.n_seq_max
        params.ctx_type = LLAMA_CONTEXT_TYPE_MTP
        params.ctx_other = target.ctx
        params.n_ctx = llama_n_ctx(target.ctx)
        params.n_batch = params.n_ubatch = <uint32_t> self.capacity
        params.n_seq_max = <uint32_t> self.n_seq_max
        params.n_rs_seq = 0
        params.n_outputs_max = <uint32_t> self.n_seq_max
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.kv_unified = True
        self.headed = <headed_t *> calloc(<size_t> self.n_seq_max, sizeof(headed_t))
        self.rows = <float *> malloc(<size_t> self.n_seq_max * KEPT * <size_t> self.width * sizeof(float))
        self.batch = llama_batch_init(self.capacity, 0, 1)
        self.batch.embd = <float *> calloc(<size_t> self.capacity * <size_t> self.width, sizeof(float))
        if not (self.headed and self.rows and self.batch.embd):
            raise MemoryError
        forget_log()
        with nogil:
            self.ctx = llama_init_from_model(model.model, params)
        check_ptr(self.ctx, "cannot create a context for the head")
        # which begins anew where it is full
        self.n_free = UNLIMITED
        born(HEAD)
        self.memory = llama_get_memory(self.ctx)
        set_nextn(target.ctx, True, True)
        set_nextn(self.ctx, True, True)

    def __dealloc__(self):
        if self.ctx != NULL:
            # the rows of the target are asked for no more
            set_nextn(self.target.ctx, False, True)
            llama_free(self.ctx)
            died(HEAD)
        free(self.headed)
        free(self.rows)

    cdef int32_t behind(self, const sequence_t *s) noexcept nogil:
        cdef headed_t *headed
        cdef int32_t start, n = s.tokens.n_certain
        if s.tokens.n_spans:
            return -1
        headed = headed_of(self, s)
        # without the hidden row before the last token there is nothing to go on with
        if headed.n_rows == 0 or headed.first + headed.n_rows != n - 1:
            return -1
        start = n - headed.n_rows
        # all rows that are new, and the last again where none is
        return n - (max(start, min(headed.n_past, n - 1)) if start <= headed.n_past <= n else start)

    cdef void begin(self, sequence_t *s, int32_t room) noexcept nogil:
        cdef headed_t *headed = headed_of(self, s)
        cdef int32_t k, n = s.tokens.n_certain, n_new = self.behind(s), start = n - min(n_new, room)
        if headed.n_past < n - headed.n_rows or headed.n_past > n or n_new > room:
            # nobody kept what lies between, or it was another's, or there is no room for all: it begins anew
            llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        else:
            llama_memory_seq_rm(self.memory, s.seq_id, sequence_position(s, start), -1)
        for k in range(start, n):
            add(self, s.tokens.ids[k], sequence_position(s, k), s.seq_id, kept(self, s.seq_id, k - 1 - headed.first),
                k == n - 1)
        headed.n_past = n

    cdef void extend(self, sequence_t *s, int32_t row) noexcept nogil:
        # with its own hidden row of the token before; rows are given in the order of the batch, and none that is read
        # is overwritten before
        add(self, s.draft.proposal.tokens[s.draft.proposal.n - 1],
            sequence_position(s, s.tokens.n_certain + s.draft.proposal.n - 1), s.seq_id, get_nextn(self.ctx, row), True)

    cdef void end(self, sequence_t *s) noexcept nogil:
        # what was drafted is fed with the hidden rows of the model once it came
        llama_memory_seq_rm(self.memory, s.seq_id, sequence_position(s, s.tokens.n_certain), -1)

    cdef int32_t decode(self) noexcept nogil:
        return llama_decode(self.ctx, self.batch)

    cdef void forget(self) noexcept nogil:
        llama_memory_clear(self.memory, False)
        memset(self.headed, 0, <size_t> self.n_seq_max * sizeof(headed_t))


cdef void add(
    Head self, int32_t token, int32_t position, int32_t seq_id, const float *hidden, bint output
) noexcept nogil:
    """A row of the batch; without ``hidden`` whatever lies there."""
    if hidden != NULL:
        memcpy(self.batch.embd + <size_t> self.batch.n_tokens * <size_t> self.width, hidden,
               <size_t> self.width * sizeof(float))
    proposer_row(self, token, position, seq_id, output)


cdef float *kept(Head self, int32_t seq_id, int32_t i) noexcept nogil:
    return self.rows + (<size_t> seq_id * KEPT + <size_t> i) * <size_t> self.width


cdef headed_t *headed_of(Head self, const sequence_t *s) noexcept nogil:
    """What the head has of a sequence, nothing where its id was another's."""
    cdef headed_t *headed = &self.headed[s.seq_id]
    if headed.tag != s.tag or headed.n_runs != s.share.n_runs:
        llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        memset(headed, 0, sizeof(headed_t))
        headed.tag = s.tag
        headed.n_runs = s.share.n_runs
    return headed


cdef void head_keep(Head self, const sequence_t *s, int32_t first, int32_t row, int32_t n) noexcept nogil:
    """Keep the hidden rows of a sequence's ``n`` tokens from ``first`` on, which are those of the last step from
    ``row`` on."""
    cdef headed_t *headed = headed_of(self, s)
    cdef float *hidden
    cdef int32_t i, dropped
    if n > KEPT:
        first, row, n = first + n - KEPT, row + n - KEPT, KEPT
    if headed.first + headed.n_rows != first:
        headed.n_rows = 0
    dropped = headed.n_rows + n - KEPT
    if dropped > 0:
        memcpy_down(kept(self, s.seq_id, 0), kept(self, s.seq_id, dropped),
                    <size_t> (headed.n_rows - dropped) * <size_t> self.width)
        headed.n_rows -= dropped
    for i in range(n):
        hidden = get_nextn(self.target.ctx, row + i)
        if hidden == NULL:
            headed.n_rows = 0
            return
        memcpy(kept(self, s.seq_id, headed.n_rows + i), hidden, <size_t> self.width * sizeof(float))
    headed.n_rows += n
    headed.first = first + n - headed.n_rows


cdef void memcpy_down(float *to, const float *source, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        to[i] = source[i]
