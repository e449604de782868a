"""Embeddings: inputs of many requests packed into shared batches.

Each input is a sequence of its own. Where attention looks both ways an input must lie in one micro-batch; a causal
model with a memory takes it in pieces, whose pooled vectors add up. Nothing stays in memory once an input has its
vector.
"""
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from .context cimport Batch, Context, batch_add, context_decode, context_encode
from .cost cimport cost_add, cost_fit, cost_init
from .headers.clock cimport now
from .headers.llama cimport (
    LLAMA_MAX_SEQ, LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_MEAN, LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_RANK,
    llama_get_embeddings_ith, llama_get_embeddings_seq, llama_memory_clear, llama_memory_seq_rm,
    llama_synchronize,
)
from .inputs cimport Input, input_finish, input_t
from .leaks cimport EMBEDDER, born, died
from .pace cimport pace_t
from .step cimport NO_OUTPUT


cdef class Embedder:
    """Runs Inputs in a Context that was made with ``embeddings``. Engine thread only, but for ``counts`` and
    ``since_last_step``.

    ``whole`` says that an input cannot be computed in pieces, because attention looks both ways; without a memory it
    never can. ``max_tokens`` is the longest input that can be added.

    ``pace`` has a value for each name of ``pace_t``. Raises ValueError for one it lacks, and for a context without
    embeddings or whose batches are not one micro-batch.
    """

    def __cinit__(self, Context context not None, *, pace_t pace, bint whole=False):
        if not context.embeddings:
            raise ValueError("the context was made without embeddings")
        self.context = context
        self.pace = pace
        cost_init(&self.cost, pace.cost_decay)
        self.encodes = context.model.has_encoder
        self.whole = whole or context.memory == NULL or self.encodes
        self.pooling_type = context.pooling_type
        self.width = (
            context.model.n_cls_out if self.pooling_type == LLAMA_POOLING_TYPE_RANK else context.model.n_embd_out
        )
        if context.n_ubatch != context.n_batch:
            # llama.cpp pools each micro-batch for itself, and aborts where one must hold a whole input
            raise ValueError(f"n_batch {context.n_batch} and n_ubatch {context.n_ubatch} must be equal")
        if self.whole:
            self.room = context.n_ubatch
        else:
            self.room = context.n_ctx
        self.max_tokens = min(self.room, context.n_ctx_seq)
        self.batch = Batch(context.n_batch)
        self.running = []
        self.free_seq_ids = list(reversed(range(min(context.n_seq_max, LLAMA_MAX_SEQ))))
        self.last_step = now()
        born(EMBEDDER)

    def __dealloc__(self):
        # set by a construction that came to its end; the collector may have cleared the objects by now
        if self.last_step > 0:
            died(EMBEDDER)

    def fits(self, Input input not None):
        """Whether ``add`` would take it now."""
        return len(self.free_seq_ids) > 0 and self.n_reserved + input.state.n_tokens <= self.room

    def add(self, Input input not None):
        """Let an input run. Raises ValueError for one that is too long, ran before or does not fit now."""
        cdef input_t *s = &input.state
        if s.values != NULL or s.n_tokens > self.max_tokens or not self.fits(input):
            raise ValueError(f"an input of {s.n_tokens} tokens cannot be added")
        s.n_vectors = s.n_tokens if self.pooling_type == LLAMA_POOLING_TYPE_NONE else 1
        s.width = self.width
        s.values = <float *> calloc(<size_t> s.n_vectors * s.width, sizeof(float))
        if s.values == NULL:
            raise MemoryError
        s.seq_id = self.free_seq_ids.pop()
        self.n_reserved += s.n_tokens
        self.context.set_group(s.seq_id, input.group)
        self.states[self.n_running] = s
        self.n_running += 1
        self.running.append(input)

    def step(self, double seconds):
        """Compute one batch that takes about ``seconds``, more where one input alone takes longer.

        Returns llama_decode's code, or NO_OUTPUT; after another code than 0 nothing that runs is usable.
        """
        cdef int code = 0
        if self.n_running:
            with nogil:
                code = embedder_step(self, seconds)
        return code

    def take_finished(self):
        """The inputs that have their vectors; they do not run any more."""
        cdef Input input
        finished = [input for input in self.running if input.state.n_past == input.state.n_tokens]
        for input in finished:
            self.remove(input)
        return finished

    def remove(self, Input input not None):
        """Stop computing an input that runs. Raises ValueError for one that does not."""
        cdef int32_t i
        cdef int32_t place = self.running.index(input)
        del self.running[place]
        self.n_running -= 1
        for i in range(place, self.n_running):
            self.states[i] = self.states[i + 1]
        if self.context.memory != NULL and not self.encodes:
            llama_memory_seq_rm(self.context.memory, input.state.seq_id, -1, -1)
        self.n_reserved -= input.state.n_tokens
        self.free_seq_ids.append(input.state.seq_id)
        input.state.seq_id = -1

    def clear(self):
        """Stop computing everything and empty the memory; what ran."""
        dropped = list(self.running)
        for input in dropped:
            self.remove(input)
        if self.context.memory != NULL:
            llama_memory_clear(self.context.memory, False)
        return dropped

    def since_last_step(self):
        """Seconds since the last step finished. Any thread."""
        return now() - self.last_step

    def counts(self):
        """Everything counted since the start, as a dict. Any thread; never waits for a step."""
        return {
            "embedding_steps": self.steps, "embedding_inputs": self.n_inputs, "embedding_tokens": self.n_tokens,
            "embedding_seconds": self.seconds,
        }


cdef int embedder_step(Embedder self, double seconds) noexcept nogil:
    cdef int32_t i, n_rows
    cdef int code
    cdef bint spoiled = False
    cdef double start
    embedder_fill(self, rows_within(self, seconds))
    n_rows = self.batch.batch.n_tokens
    start = now()
    if self.encodes:
        code = context_encode(self.context, &self.batch.batch)
    else:
        code = context_decode(self.context, &self.batch.batch)
    llama_synchronize(self.context.ctx)
    self.last_step = now()
    if code != 0:
        return code
    for i in range(self.n_running):
        if self.states[i].n_rows:
            if pool(self, self.states[i]) < 0:
                return NO_OUTPUT
            self.states[i].n_past += self.states[i].n_rows
            if self.states[i].n_past == self.states[i].n_tokens:
                input_finish(self.states[i])
                if not self.states[i].finite and not self.states[i].alone and self.n_running > 1:
                    self.states[i].alone = spoiled = True
                else:
                    self.n_inputs += 1
    if spoiled:
        start_over(self)
    cost_add(&self.cost, n_rows, self.last_step - start)
    self.steps += 1
    self.n_tokens += n_rows
    self.seconds += self.last_step - start
    return 0


cdef void start_over(Embedder self) noexcept nogil:
    """One bad number may spoil everybody's in its batch and, where there is a memory, those of who looks at it later:
    weights of 0 times NaN are NaN. So nothing of it stays, and who was spoiled runs alone."""
    cdef int32_t i
    cdef input_t *s
    if self.context.memory != NULL:
        llama_memory_clear(self.context.memory, True)
    for i in range(self.n_running):
        s = self.states[i]
        if s.alone or s.n_past < s.n_tokens:
            s.n_past = 0
            memset(s.values, 0, <size_t> s.n_vectors * s.width * sizeof(float))


cdef int32_t rows_within(Embedder self, double seconds) noexcept nogil:
    """How many rows take that long, by the steps there were."""
    cdef double fixed, per_row
    cdef int32_t n_batch = self.batch.capacity
    if self.cost.rows == 0:
        return min(n_batch, self.pace.first_embed)
    cost_fit(&self.cost, &fixed, &per_row)
    return <int32_t> min(<double> n_batch, max(<double> self.pace.min_embed, (seconds - fixed) / per_row))


cdef void embedder_fill(Embedder self, int32_t n_rows) noexcept nogil:
    """Fill the batch in order of admission. The first input always has rows: all of its own where it must be whole."""
    cdef int32_t i, k, take
    cdef input_t *s
    cdef input_t *alone = NULL
    self.batch.batch.n_tokens = 0
    for i in range(self.n_running):
        self.states[i].n_rows = 0
        if self.states[i].alone and alone == NULL:
            alone = self.states[i]
    for i in range(self.n_running):
        s = self.states[i]
        if alone != NULL and s != alone:
            continue
        s.first_row = self.batch.batch.n_tokens
        take = s.n_tokens - s.n_past
        if s.first_row + take > n_rows:
            if self.whole and s.first_row:
                continue
            if not self.whole:
                take = n_rows - s.first_row
        for k in range(s.n_past, s.n_past + take):
            batch_add(&self.batch.batch, s.tokens[k], k, s.seq_id, True)
        s.n_rows = take


cdef int pool(Embedder self, input_t *s) noexcept nogil:
    """Take over what the last step made of an input: 0, or -1 where llama.cpp has nothing."""
    cdef int32_t i, k
    cdef float *vector
    cdef size_t size = <size_t> s.width * sizeof(float)
    if self.pooling_type == LLAMA_POOLING_TYPE_NONE:
        for k in range(s.n_rows):
            vector = llama_get_embeddings_ith(self.context.ctx, s.first_row + k)
            if vector == NULL:
                return -1
            memcpy(s.values + <size_t> (s.n_past + k) * s.width, vector, size)
        return 0
    vector = llama_get_embeddings_seq(self.context.ctx, s.seq_id)
    if vector == NULL:
        return -1
    if self.pooling_type == LLAMA_POOLING_TYPE_MEAN:
        for i in range(s.width):
            s.values[i] += vector[i] * (<float> s.n_rows / <float> s.n_tokens)
    elif self.pooling_type != LLAMA_POOLING_TYPE_CLS or s.n_past == 0:
        memcpy(s.values, vector, size)
    return 0
