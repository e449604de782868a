"""What becomes of a row of logits: a token is chosen, its text joins the sequence, what is certain of it is told."""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from .context cimport Context
from .draw cimport draw_mask, scratch_free, scratch_init
from .headers.llama cimport llama_get_logits_ith
from .logprobs cimport logprob_t, logprobs_add, logprobs_drop, logprobs_ready, row_logprobs
from .masks cimport Masker, constraint_park, constraint_ready, constraint_t, masker_ask
from .outbox cimport Outbox, outbox_stage, record_t
from .sampler cimport sampler_pick
from .sequence cimport (
    FINISH_LENGTH, FINISH_NONE, FINISH_REFUSED, FINISH_STOP, sequence_append, sequence_preserves, sequence_t,
)
from .text cimport text_drop, text_feed, text_ready
from .vocab cimport TOKEN_CONTROL, TOKEN_EOG, Vocab


cdef class Output:
    """Chooses tokens out of a Context's logits, and stages what becomes text in an Outbox. The engine thread only."""

    def __cinit__(self, Context context not None, Vocab vocab not None, Outbox outbox not None, Masker masker not None):
        self.context = context
        self.vocab = vocab
        self.outbox = outbox
        self.masker = masker
        if scratch_init(&self.scratch, vocab.pieces.n_tokens) < 0:
            raise MemoryError

    def __dealloc__(self):
        scratch_free(&self.scratch)


cdef int output_score(Output self, sequence_t *s) noexcept nogil:
    """Report the log probabilities that the rows of this step give to the prompt: 0, or -1 when out of memory."""
    cdef int32_t i, k, first = s.n_past - s.n_rows
    cdef logprob_t *entries
    cdef float *logits
    for i in range(s.n_rows):
        k = first + i + 1
        if not s.logprobs.n_scored <= k < s.n_prompt:
            continue
        logits = llama_get_logits_ith(self.context.ctx, s.first_row + i)
        entries = logprobs_add(&s.logprobs, 0)
        if logits == NULL or entries == NULL:
            return -1
        row_logprobs(&self.scratch, logits, s.tokens[k], s.logprobs.n_top, entries)
        s.logprobs.n_scored = k + 1
    return stage_record(self, s, 0, s.logprobs.n, True)


cdef int output_next(Output self, sequence_t *s, float *logits) noexcept nogil:
    """The sequence's next token, under a constraint several, or its end: 0, or -1 when out of memory."""
    cdef constraint_t *c = s.constraint
    cdef int32_t token
    if s.n_tokens == s.n_max:
        # only the prompt was wanted
        return end(self, s, FINISH_LENGTH)
    if c != NULL and not constraint_ready(c):
        return 0 if c.parked else constraint_park(c, logits, self.scratch.n_vocab)
    if s.logprobs.n_top >= 0:
        memcpy(self.scratch.raw, logits, <size_t> self.scratch.n_vocab * sizeof(float))
    if c != NULL:
        c.parked = False
        return next_allowed(self, s, c, logits)
    if s.n_tokens < s.n_min:
        rule_out_ends(self, s, logits)
    token = sampler_pick(s.sampler, &self.scratch, logits, s.tokens, s.n_tokens)
    return -1 if token < 0 else accept(self, s, token, False)


cdef int next_allowed(Output self, sequence_t *s, constraint_t *c, float *logits) noexcept nogil:
    """``output_next`` under a constraint whose mask is ready."""
    cdef int32_t i, token
    if c.failed:
        return end(self, s, FINISH_REFUSED)
    if not c.n_forced and not c.complete:
        draw_mask(logits, self.scratch.n_vocab, c.mask)
        token = sampler_pick(s.sampler, &self.scratch, logits, s.tokens, s.n_tokens)
        if token < 0 or accept(self, s, token, False) < 0:
            return -1
        return masker_ask(self.masker, c, token) if s.finish == FINISH_NONE else 0
    for i in range(c.n_forced):
        # a text that is complete has ended by itself, also where it is as long as it may be
        if s.finish == FINISH_NONE and accept(self, s, c.forced[i], c.complete and i == c.n_forced - 1) < 0:
            return -1
    c.n_forced = 0
    return end(self, s, FINISH_STOP) if c.complete and s.finish == FINISH_NONE else 0


cdef void rule_out_ends(Output self, const sequence_t *s, float *logits) noexcept nogil:
    cdef int32_t i
    for i in range(self.vocab.pieces.n_eog):
        logits[self.vocab.pieces.eog[i]] = -INFINITY
    for i in range(s.n_stop_tokens):
        logits[s.stop_tokens[i]] = -INFINITY


cdef bint is_stop_token(const sequence_t *s, int32_t token) noexcept nogil:
    cdef int32_t i
    for i in range(s.n_stop_tokens):
        if s.stop_tokens[i] == token:
            return True
    return False


cdef int accept(Output self, sequence_t *s, int32_t token, bint last) noexcept nogil:
    """Append a generated token, decide whether the sequence ends, as it does behind the ``last`` one, and stage its
    text: 0, or -1 when out of memory."""
    cdef int32_t flags = self.vocab.pieces.flags[token]
    cdef int32_t begin = self.vocab.pieces.offset[token]
    cdef int32_t length = self.vocab.pieces.offset[token + 1] - begin
    cdef int stopped = 0
    if sequence_append(s, token) < 0:
        return -1
    if flags & TOKEN_EOG:
        stopped = not s.ignore_eos or s.constraint != NULL
    elif is_stop_token(s, token):
        stopped = 1
    elif not flags & TOKEN_CONTROL or s.show_control or sequence_preserves(s, token):
        if s.logprobs.n_top >= 0 and length > 0 and note_logprobs(self, s, token, length) < 0:
            return -1
        stopped = text_feed(&s.text, self.vocab.pieces.text + begin, length)
        if stopped < 0:
            return -1
    if stopped or last:
        s.finish = FINISH_STOP
    elif s.n_tokens >= s.n_max:
        s.finish = FINISH_LENGTH
    return stage(self, s)


cdef int end(Output self, sequence_t *s, int32_t finish) noexcept nogil:
    """End a sequence without another token: 0, or -1 when out of memory."""
    s.finish = finish
    return stage(self, s)


cdef int note_logprobs(Output self, sequence_t *s, int32_t token, int32_t length) noexcept nogil:
    """Keep the log probabilities of a generated token until its text leaves: 0, or -1 when out of memory."""
    cdef logprob_t *entries = logprobs_add(&s.logprobs, length)
    if entries == NULL:
        return -1
    row_logprobs(&self.scratch, self.scratch.raw, token, s.logprobs.n_top, entries)
    return 0


cdef int stage(Output self, sequence_t *s) noexcept nogil:
    """Put what became certain of its text into the Outbox: 0, or -1 when out of memory."""
    cdef int32_t ready = s.text.n_pending if s.finish != FINISH_NONE else text_ready(&s.text)
    if not ready and s.finish == FINISH_NONE:
        return 0
    return stage_record(self, s, ready, logprobs_ready(&s.logprobs, ready, s.finish != FINISH_NONE), False)


cdef int stage_record(
    Output self, sequence_t *s, int32_t length, int32_t n_logprobs, bint of_prompt
) noexcept nogil:
    """Put the first bytes of its text and the first log probabilities into the Outbox: 0, or -1 when out of memory."""
    cdef record_t record
    record.tag = s.tag
    record.length = length
    record.n_tokens = s.n_unreported
    record.n_cached = s.n_cached
    record.finish = s.finish
    record.n_entries = n_logprobs * (1 + s.logprobs.n_top)
    record.of_prompt = of_prompt
    if outbox_stage(self.outbox, &record, s.text.pending, s.logprobs.entries) < 0:
        return -1
    if s.logprobs.n_top >= 0:
        logprobs_drop(&s.logprobs, n_logprobs, length)
    text_drop(&s.text, length)
    s.n_unreported = 0
    return 0
