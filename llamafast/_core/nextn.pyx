"""Drafts of a model's own head for the tokens after the next (MTP; NextN in llama.cpp).

The head takes a token and the hidden row of the one before it, which llama.cpp gives beside the logits; it says the
token after, and its own hidden row, with which it goes on. Its memory is a context of its own and may begin at any
position: where tokens were computed whose hidden rows nobody kept, it begins anew behind them.

What it needs of llama.cpp is in no public header. Its symbols are looked up by their mangled names, here and nowhere
else; where one is missing ``available`` says so, and nobody drafts by a head.
"""
cimport cython
from libc.math cimport expf
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from .context cimport Context
from .headers.clock cimport thread_now
from .headers.llama cimport (
    LLAMA_CONTEXT_TYPE_MTP, LLAMA_MAX_SEQ, c_bool, llama_batch_free, llama_batch_init, llama_context_default_params,
    llama_context_params, llama_decode, llama_free, llama_get_logits_ith, llama_get_memory, llama_init_from_model,
    llama_memory_clear, llama_memory_seq_rm, llama_model_get_vocab, llama_model_n_embd_out, llama_model_n_layer_nextn,
    llama_n_ctx, llama_n_seq_max, llama_vocab_n_tokens,
)
from .leaks cimport HEAD, born, died
from .llama_log cimport check_ptr, forget_log
from .model cimport Model
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

# Weight of a new call in what calls take.
cdef double FRESH = 0.1


def available():
    """Whether this llama.cpp has what a Head needs."""
    return set_nextn != NULL and get_nextn != NULL


# no_gc_clear: to free it takes the context that it drafts for
@cython.no_gc_clear
cdef class Head:
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
        self.batch.embd = <float *> malloc(<size_t> self.capacity * <size_t> self.width * sizeof(float))
        if not (self.headed and self.rows and self.batch.embd):
            raise MemoryError
        forget_log()
        with nogil:
            self.ctx = llama_init_from_model(model.model, params)
        check_ptr(self.ctx, "cannot create a context for the head")
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
        llama_batch_free(self.batch)
        free(self.headed)
        free(self.rows)

    def time_calls(self):
        """Measure what a call takes, of one row and of several. Nothing may run; RuntimeError where one fails."""
        cdef int32_t rows, most = min(self.n_seq_max, 8)
        cdef double[2] taken
        memset(self.batch.embd, 0, <size_t> most * <size_t> self.width * sizeof(float))
        for again in range(3):
            for rows in (1, most):
                self.batch.n_tokens = 0
                for i in range(rows):
                    add(self, 0, 0, i, NULL, True)
                start = thread_now()
                if llama_decode(self.ctx, self.batch) != 0:
                    raise RuntimeError("the head does not compute")
                start = thread_now() - start
                taken[rows > 1] = min(start, taken[rows > 1]) if again else start
                llama_memory_clear(self.memory, False)
        self.per_row = max(0.0, taken[1] - taken[0]) / (most - 1) if most > 1 else 0.0
        self.fixed = max(0.0, taken[0] - self.per_row)


cdef void add(
    Head self, int32_t token, int32_t position, int32_t seq_id, const float *hidden, bint output
) noexcept nogil:
    """A row of the batch; without ``hidden`` that of the row lies there already."""
    cdef int32_t i = self.batch.n_tokens
    self.batch.token[i] = token
    self.batch.pos[i] = position
    self.batch.n_seq_id[i] = 1
    self.batch.seq_id[i][0] = seq_id
    self.batch.logits[i] = output
    if hidden != NULL:
        memcpy(self.batch.embd + <size_t> i * self.width, hidden, <size_t> self.width * sizeof(float))
    self.batch.n_tokens = i + 1


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


cdef bint head_knows(Head self, const sequence_t *s) noexcept nogil:
    """Whether it can draft for a sequence: the hidden row before its last token is kept."""
    cdef headed_t *headed = headed_of(self, s)
    return headed.n_rows > 0 and headed.first + headed.n_rows == s.tokens.n_certain - 1


cdef double head_seconds(Head self, int32_t n, int32_t most) noexcept nogil:
    """What ``most`` tokens for each of ``n`` sequences take, about."""
    return most * (self.fixed + n * self.per_row)


cdef int head_draft(Head self, sequence_t **drafting, int32_t n, int32_t most) noexcept nogil:
    """Draft up to ``most`` tokens for ``n`` sequences that it ``knows``, into their proposals: 0, or llama_decode's
    code, and then nothing is drafted."""
    cdef int32_t i, k, start, n_left = 0
    cdef int32_t at[LLAMA_MAX_SEQ]
    cdef sequence_t *left[LLAMA_MAX_SEQ]
    cdef sequence_t *s
    cdef headed_t *headed
    cdef double began = thread_now()
    cdef int code
    self.batch.n_tokens = 0
    for i in range(n):
        s = drafting[i]
        s.draft.proposal.n = 0
        headed = headed_of(self, s)
        start = s.tokens.n_certain - headed.n_rows
        if headed.n_past < start or headed.n_past > s.tokens.n_certain:
            # nobody kept what lies between, or it was another's: it begins anew
            llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
            headed.n_past = start
        # all rows that are new, and the last again where none is
        start = max(start, min(headed.n_past, s.tokens.n_certain - 1))
        llama_memory_seq_rm(self.memory, s.seq_id, sequence_position(s, start), -1)
        if self.batch.n_tokens + s.tokens.n_certain - start > self.capacity - (n - i):
            start = s.tokens.n_certain - 1
            llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        for k in range(start, s.tokens.n_certain):
            add(self, s.tokens.ids[k], sequence_position(s, k), s.seq_id, kept(self, s.seq_id, k - 1 - headed.first),
                k == s.tokens.n_certain - 1)
        headed.n_past = s.tokens.n_certain
        left[n_left] = s
        at[n_left] = self.batch.n_tokens - 1
        n_left += 1
    for k in range(most):
        self.rows_fed += self.batch.n_tokens
        self.calls += 1
        code = llama_decode(self.ctx, self.batch)
        if code != 0:
            fail(self, drafting, n)
            return code
        n_left = take(self, left, at, n_left, most)
        if n_left == 0 or k == most - 1:
            break
        extend(self, left, at, n_left)
    for i in range(n):
        llama_memory_seq_rm(
            self.memory, drafting[i].seq_id, sequence_position(drafting[i], drafting[i].tokens.n_certain), -1)
    observe(self, n, most, thread_now() - began)
    return 0


cdef int32_t take(Head self, sequence_t **left, int32_t *at, int32_t n, int32_t most) noexcept nogil:
    """Take the likeliest token of each row into its sequence's proposal; how many of the sequences go on."""
    cdef int32_t i, token, n_left = 0
    cdef float *logits
    cdef sequence_t *s
    for i in range(n):
        s = left[i]
        logits = llama_get_logits_ith(self.ctx, at[i])
        token = likeliest(logits, self.n_vocab, self.least) if logits != NULL else -1
        if token < 0:
            continue
        s.draft.proposal.tokens[s.draft.proposal.n] = token
        s.draft.proposal.n += 1
        left[n_left] = s
        at[n_left] = at[i]
        n_left += 1
    return n_left


cdef void extend(Head self, sequence_t **left, int32_t *at, int32_t n) noexcept nogil:
    """The batch of the tokens drafted last, each with the head's own hidden row of the one before."""
    cdef int32_t i
    cdef float *hidden
    cdef sequence_t *s
    self.batch.n_tokens = 0
    for i in range(n):
        s = left[i]
        # rows are given in the order of the batch: none that is read is overwritten before
        hidden = get_nextn(self.ctx, at[i])
        add(self, s.draft.proposal.tokens[s.draft.proposal.n - 1],
            sequence_position(s, s.tokens.n_certain + s.draft.proposal.n - 1), s.seq_id, hidden, True)
        at[i] = i


cdef int32_t likeliest(const float *logits, int32_t n, float least) noexcept nogil:
    """The token of the largest logit, -1 where it is less probable than ``least``."""
    cdef int32_t i, best = 0
    cdef double total = 0
    for i in range(1, n):
        if logits[i] > logits[best]:
            best = i
    if least > 0:
        for i in range(n):
            total += expf(logits[i] - logits[best])
        if 1 < least * total:
            return -1
    return best


cdef void fail(Head self, sequence_t **drafting, int32_t n) noexcept nogil:
    """Whatever it was, full memory for one: everybody begins anew."""
    cdef int32_t i
    self.failures += 1
    llama_memory_clear(self.memory, False)
    memset(self.headed, 0, <size_t> self.n_seq_max * sizeof(headed_t))
    for i in range(n):
        drafting[i].draft.proposal.n = 0


cdef void observe(Head self, int32_t n, int32_t most, double seconds) noexcept nogil:
    """``most`` calls for ``n`` sequences took so long."""
    cdef double surprise = min(max(seconds / max(head_seconds(self, n, most), 1e-9), 0.5), 2.0)
    self.fixed *= 1 + FRESH * (surprise - 1)
    self.per_row *= 1 + FRESH * (surprise - 1)
