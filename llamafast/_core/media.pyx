"""Rows of media: which are computed next, and llama_decode with vectors in place of tokens.

A batch has tokens or vectors, never both, so these rows have steps of their own.
"""
from libc.stdint cimport int8_t, int32_t
from libc.stdlib cimport calloc, free

from .context cimport Context, context_decode
from .cost cimport cost_init
from .headers.llama cimport (
    LLAMA_ROPE_TYPE_IMROPE, LLAMA_ROPE_TYPE_MROPE, llama_model_n_embd_inp, llama_model_rope_type,
    llama_n_batch, llama_n_ubatch, llama_pos, llama_seq_id, llama_set_causal_attn,
)
from .leaks cimport BATCH, born, died
from .live cimport live_t
from .sequence cimport PHASE_PREFILLING, sequence_span, sequence_t
from .spans cimport span_t


cdef class MediaBatch:
    """The arrays of one llama_decode call with vectors, for rows of one sequence."""

    def __cinit__(self, Context context not None, double cost_decay):
        cdef int32_t i
        cdef int rope = llama_model_rope_type(context.model.model)
        self.context = context
        self.width = llama_model_n_embd_inp(context.model.model)
        self.n_planes = 4 if rope == LLAMA_ROPE_TYPE_MROPE or rope == LLAMA_ROPE_TYPE_IMROPE else 1
        self.capacity = <int32_t> llama_n_batch(context.ctx)
        self.n_ubatch = <int32_t> llama_n_ubatch(context.ctx)
        cost_init(&self.cost, cost_decay)
        born(BATCH)
        self.batch.pos = <llama_pos *> calloc(<size_t> (self.n_planes * self.capacity), sizeof(llama_pos))
        self.batch.n_seq_id = <int32_t *> calloc(<size_t> self.capacity, sizeof(int32_t))
        # all rows are of one sequence: the pointers are to one id, which lies behind them
        self.batch.seq_id = <llama_seq_id **> calloc(<size_t> self.capacity + 1, sizeof(llama_seq_id *))
        self.batch.logits = <int8_t *> calloc(<size_t> self.capacity, sizeof(int8_t))
        if not (self.batch.pos and self.batch.n_seq_id and self.batch.seq_id and self.batch.logits):
            raise MemoryError
        for i in range(self.capacity):
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i] = <llama_seq_id *> (self.batch.seq_id + self.capacity)

    def __dealloc__(self):
        if self.capacity:
            died(BATCH)
        free(self.batch.pos)
        free(self.batch.n_seq_id)
        free(self.batch.seq_id)
        free(self.batch.logits)


cdef sequence_t *media_next(const live_t *live) noexcept nogil:
    """The first of those that run whose next rows are of media that are here; NULL: nobody's. Who is to be saved first
    has to wait."""
    cdef int32_t i
    cdef sequence_t *s
    cdef const span_t *span
    for i in range(live.n):
        s = live.states[i]
        if s.tokens.n_spans == 0 or s.phase != PHASE_PREFILLING or s.tokens.n_past >= s.tokens.save_at:
            continue
        span = sequence_span(s)
        if span != NULL and span.rows != NULL:
            return s
    return NULL


cdef int32_t media_fill(MediaBatch self, sequence_t *s, const span_t *span, int32_t most) noexcept nogil:
    """Fill the batch with up to ``most`` rows of the span that a sequence stands in, all where it is not causal; how
    many."""
    cdef int32_t i, plane, first = s.tokens.n_past - span.row
    cdef int32_t n = span.n_rows - first
    if span.causal:
        n = max(1, min(n, min(most, self.capacity)))
    self.batch.n_tokens = n
    self.batch.embd = <float *> span.rows + <size_t> first * <size_t> self.width
    self.batch.seq_id[0][0] = s.seq_id
    for plane in range(self.n_planes):
        for i in range(n):
            if span.offsets == NULL:
                self.batch.pos[plane * n + i] = span.position + first + i
            else:
                # what z is for is a projector's own: it is no time and no place
                self.batch.pos[plane * n + i] = span.offsets[plane * span.n_rows + first + i] + (
                    span.position if plane < 3 else 0)
    return n


cdef int32_t media_decode(MediaBatch self, const span_t *span) noexcept nogil:
    """llama_decode's code."""
    cdef int32_t code
    if span.causal:
        return context_decode(self.context, &self.batch)
    llama_set_causal_attn(self.context.ctx, False)
    code = context_decode(self.context, &self.batch)
    llama_set_causal_attn(self.context.ctx, True)
    return code
