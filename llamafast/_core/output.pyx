"""What becomes of a row of logits: a token is chosen, its text joins the sequence, what is certain of it is told."""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from .budget cimport budget_read, budget_token
from .constraint cimport answer_t, constraint_came, constraint_chose, constraint_park, constraint_t
from .context cimport Context
from .draw cimport draw_mask, scratch_free, scratch_init
from .headers.llama cimport llama_get_logits_ith
from .logprobs cimport logprob_t, logprobs_add, logprobs_drop, logprobs_ready, row_logprobs, row_rank
from .masks cimport Masker, masker_answered, masker_follow
from .outbox cimport Outbox, outbox_stage, record_t
from .sampler cimport sampler_pick
from .sequence cimport (
    FINISH_HALTED, FINISH_LENGTH, FINISH_NONE, FINISH_REFUSED, FINISH_STOP, PHASE_ENDED, PHASE_PARKED,
    sequence_enter, sequence_t,
)
from .text cimport text_drop, text_feed, text_ready
from .tokens cimport tokens_append
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
    """Report the log probabilities that the rows of this step give to the prompt: 0, -1 when out of memory, or 1 where
    llama.cpp has no logits for one."""
    cdef int32_t i, k, first = s.tokens.n_past - s.rows.n_outputs
    cdef logprob_t *entries
    cdef float *logits
    for i in range(s.rows.n_outputs):
        k = first + i + 1
        if k >= s.tokens.n_prompt:
            break
        logits = llama_get_logits_ith(self.context.ctx, s.rows.first_output + i)
        if logits == NULL:
            return 1
        entries = logprobs_add(&s.out.logprobs, 0)
        if entries == NULL:
            return -1
        note_row(self, s, logits, s.tokens.ids[k], entries)
        s.out.logprobs.n_scored = k + 1
    return stage_record(self, s, 0, s.out.logprobs.n, True)


cdef bint output_heard(const sequence_t *s) noexcept nogil:
    """Whether the rows of its prompt that a step has computed are told, where they give no text."""
    if s.rows.n == 0 or s.tokens.n_certain > s.tokens.n_prompt:
        return False
    return s.out.options.tell_progress or (s.out.options.announce and s.tokens.n_past < s.tokens.n_prompt)


cdef int output_begun(Output self, sequence_t *s) noexcept nogil:
    """Tell how much of its prompt is there, and was already: 0, or -1 when out of memory."""
    s.out.options.announce = False
    return stage_record(self, s, 0, 0, False)


cdef int output_next(Output self, sequence_t *s, float *logits) noexcept nogil:
    """The sequence's next token, under a constraint several, or its end: 0, or -1 when out of memory."""
    cdef constraint_t *c = s.out.constraint
    cdef int32_t token, answered
    if s.tokens.n_max == s.tokens.n_prompt:
        # only the prompt was wanted
        return end(self, s, FINISH_LENGTH)
    if c != NULL:
        answered = masker_answered(self.masker, c)
        if answered <= 0:
            return answered or park(self, s, c, logits)
    if s.tokens.n_certain == s.tokens.n_max:
        # the last token that there may be was sampled: its grammar alone knows whether the text is complete
        return end(self, s, FINISH_STOP if c.answer.complete and not c.answer.failed else FINISH_LENGTH)
    if s.out.logprobs.n_top >= 0:
        memcpy(self.scratch.raw, logits, <size_t> self.scratch.n_vocab * sizeof(float))
    if c != NULL:
        return next_allowed(self, s, c, logits)
    if s.tokens.n_certain - s.tokens.n_prompt < s.out.options.min_tokens:
        rule_out_ends(self, s, logits)
    token = pick(self, s, logits)
    return -1 if token < 0 else accept(self, s, token, at_limit(s))


cdef int32_t pick(Output self, sequence_t *s, float *logits) noexcept nogil:
    """A token by the logits, or the one that ends thoughts which have become too long; -1 when out of memory. What a
    grammar rules out is not written."""
    cdef int32_t token = budget_token(&s.out.budget)
    if token >= 0 and logits[token] > -INFINITY:
        return token
    return sampler_pick(s.out.sampler, &self.scratch, logits, s.tokens.ids, s.tokens.n_certain)


cdef int park(Output self, sequence_t *s, constraint_t *c, const float *logits) noexcept nogil:
    """Keep a sequence's logits until its mask is there: 0, or -1 when out of memory."""
    if s.phase != PHASE_PARKED:
        if constraint_park(c, logits, self.scratch.n_vocab) < 0:
            return -1
        sequence_enter(s, PHASE_PARKED)
    return 0


cdef int next_allowed(Output self, sequence_t *s, constraint_t *c, float *logits) noexcept nogil:
    """``output_next`` under a constraint whose mask is ready."""
    cdef answer_t *answer = &c.answer
    cdef int32_t i, token, how
    if answer.failed:
        return end(self, s, FINISH_REFUSED)
    if not answer.complete and (answer.n_forced == 0 or c.forced_came):
        draw_mask(logits, self.scratch.n_vocab, answer.mask)
        token = pick(self, s, logits)
        if token < 0 or accept(self, s, token, FINISH_NONE) < 0:
            return -1
        if s.phase == PHASE_ENDED:
            return 0
        constraint_chose(c)
        return masker_follow(self.masker, c, token, s.tokens.n_certain == s.tokens.n_max)
    for i in range(answer.n_forced):
        # a text that is complete has ended by itself, also where it is as long as it may be
        how = FINISH_STOP if answer.complete and i == answer.n_forced - 1 else at_limit(s)
        if s.phase != PHASE_ENDED and accept(self, s, answer.forced[i], how) < 0:
            return -1
        constraint_came(c, answer.forced[i])
    c.forced_came = True
    c.n_left += answer.n_forced
    if c.mask_seconds == 0:
        # nothing was sampled so far
        c.mask_seconds = c.seconds
    return end(self, s, FINISH_STOP) if answer.complete and s.phase != PHASE_ENDED else 0


cdef int32_t at_limit(const sequence_t *s) noexcept nogil:
    """How a sequence ends behind one more token because it may have no other."""
    return FINISH_LENGTH if s.tokens.n_certain + 1 >= s.tokens.n_max else FINISH_NONE


cdef void rule_out_ends(Output self, const sequence_t *s, float *logits) noexcept nogil:
    cdef int32_t i
    for i in range(self.vocab.pieces.n_eog):
        logits[self.vocab.pieces.eog[i]] = -INFINITY
    for i in range(s.out.n_stop_tokens):
        logits[s.out.stop_tokens[i]] = -INFINITY


cdef int32_t stop_token(const sequence_t *s, int32_t token) noexcept nogil:
    """Which of the stop tokens it is, -1: none."""
    cdef int32_t i
    for i in range(s.out.n_stop_tokens):
        if s.out.stop_tokens[i] == token:
            return i
    return -1


cdef bint is_preserved(const sequence_t *s, int32_t token) noexcept nogil:
    """Whether a control token's text is shown although control tokens are not; they are few, and rare in text."""
    cdef int32_t i
    for i in range(s.out.n_preserved):
        if s.out.preserved[i] == token:
            return True
    return False


cdef int accept(Output self, sequence_t *s, int32_t token, int32_t how) noexcept nogil:
    """Append a generated token, end the sequence where the token does, or else as ``how`` says (FINISH_NONE: not yet),
    and stage its text: 0, or -1 when out of memory."""
    cdef int32_t flags = self.vocab.pieces.flags[token]
    cdef int32_t begin = self.vocab.pieces.offset[token]
    cdef int32_t length = self.vocab.pieces.offset[token + 1] - begin
    cdef int stopped = 0
    cdef int32_t which
    if tokens_append(&s.tokens, token) < 0:
        return -1
    s.out.n_unreported += 1
    if s.out.budget.n_marks:
        budget_read(&s.out.budget, self.vocab.pieces.text + begin, length)
    if flags & TOKEN_EOG:
        stopped = not s.out.options.ignore_eos or s.out.constraint != NULL
    elif (which := stop_token(s, token)) >= 0:
        stopped = 1
        s.out.matched_stop = s.out.text.n_stops + which
    elif not flags & TOKEN_CONTROL or s.out.show_control or is_preserved(s, token):
        if s.out.logprobs.n_top >= 0 and length > 0 and note_logprobs(self, s, token, length) < 0:
            return -1
        stopped = text_feed(&s.out.text, self.vocab.pieces.text + begin, length)
        if stopped < 0:
            return -1
        if stopped:
            s.out.matched_stop = s.out.text.stopped_by
            if s.out.options.keep_stop:
                # it still lies there
                s.out.text.n_pending += stopped
    if stopped:
        how = FINISH_STOP
    if how != FINISH_NONE:
        finish(s, how)
    return stage(self, s)


cdef int end(Output self, sequence_t *s, int32_t how) noexcept nogil:
    """End a sequence without another token: 0, or -1 when out of memory."""
    finish(s, how)
    return stage(self, s)


cdef void output_halt(sequence_t *s) noexcept nogil:
    """End a sequence of which nobody wants to be told any more."""
    if s.phase != PHASE_ENDED:
        finish(s, FINISH_HALTED)


cdef void finish(sequence_t *s, int32_t how) noexcept nogil:
    s.out.finish = how
    sequence_enter(s, PHASE_ENDED)


cdef int note_logprobs(Output self, sequence_t *s, int32_t token, int32_t length) noexcept nogil:
    """Keep the log probabilities of a generated token until its text leaves: 0, or -1 when out of memory."""
    cdef logprob_t *entries = logprobs_add(&s.out.logprobs, length)
    if entries == NULL:
        return -1
    note_row(self, s, self.scratch.raw, token, entries)
    return 0


cdef void note_row(
    Output self, sequence_t *s, const float *logits, int32_t token, logprob_t *entries
) noexcept nogil:
    """What a row gives to a token, as its sequence wants to have it told."""
    row_logprobs(&self.scratch, logits, token, s.out.logprobs.n_top, entries)
    if s.out.logprobs.width > 1 + s.out.logprobs.n_top:
        entries[1 + s.out.logprobs.n_top] = logprob_t(row_rank(logits, self.scratch.n_vocab, token), 0)


cdef int stage(Output self, sequence_t *s) noexcept nogil:
    """Put what became certain of its text into the Outbox: 0, or -1 when out of memory."""
    cdef bint ended = s.phase == PHASE_ENDED
    cdef int32_t ready = s.out.text.n_pending if ended else text_ready(&s.out.text)
    if not ready and not ended:
        return 0
    return stage_record(self, s, ready, logprobs_ready(&s.out.logprobs, ready, ended), False)


cdef int stage_record(
    Output self, sequence_t *s, int32_t length, int32_t n_logprobs, bint of_prompt
) noexcept nogil:
    """Put the first bytes of its text and the first log probabilities into the Outbox: 0, or -1 when out of memory."""
    cdef record_t record
    cdef int32_t *ids
    record.tag = s.tag
    record.length = length
    record.n_tokens = s.out.n_unreported
    record.n_cached = s.share.n_cached
    record.n_prompt = s.tokens.n_prompt
    if s.tokens.n_certain == s.tokens.n_prompt:
        record.n_prompt = min(s.tokens.n_past, s.tokens.n_prompt)
    record.finish = s.out.finish
    record.matched_stop = s.out.matched_stop
    record.n_entries = n_logprobs * s.out.logprobs.width
    record.of_prompt = of_prompt
    record.n_ids = s.out.n_unreported if s.out.options.tell_tokens else 0
    ids = s.tokens.ids + s.tokens.n_certain - record.n_ids
    if outbox_stage(self.outbox, &record, s.out.text.pending, s.out.logprobs.entries, ids) < 0:
        return -1
    if s.out.logprobs.n_top >= 0:
        logprobs_drop(&s.out.logprobs, n_logprobs, length)
    text_drop(&s.out.text, length)
    s.out.n_unreported = 0
    return 0
