"""One step: rows through llama_decode, tokens out of its logits, their text into the Outbox, and what that took.

Draft, fill, decode, sample and verify, detokenise, match stops, publish: all of it without the GIL, and in the steady
state of decoding without a Python decision and with no lock but the Outbox's.

What is drafted is sampled as if it were not: each row gives the token that it would give alone, and the rows behind the
first one that was drafted otherwise are taken back. So texts, log probabilities and ends are those without drafts.
"""
from libc.stdint cimport int32_t

from .constraint cimport constraint_in_time
from .context cimport Batch, Context, context_decode
from .cost cimport cost_add, cost_add_prompts, cost_fit, times_observe
from .drafter cimport Drafter, drafter_drop, drafter_observe
from .glance cimport glance_part, glance_step
from .headers.clock cimport now
from .headers.llama cimport LLAMA_MAX_SEQ, llama_get_logits_ith, llama_memory_seq_rm
from .histograms cimport histograms_init, observe_end, observe_step, observe_token
from .leaks cimport RUNNER, born, died
from .live cimport live_free, live_grow, live_init
from .masks cimport Masker, masker_look_ahead, masker_wait
from .media cimport MediaBatch, media_decode, media_fill, media_next
from .nextn cimport head_keep
from .outbox cimport Outbox, outbox_publish
from .output cimport Output, output_begun, output_heard, output_next, output_score
from .pace cimport pace_t
from .rows cimport quota_init, quota_spare, rows_fill, rows_gave, rows_give_token, rows_of_media
from .sequence cimport (
    PHASE_ENDED, PHASE_PARKED, sequence_group, sequence_position, sequence_reach, sequence_schedule, sequence_span,
    sequence_t,
)
from .spans cimport span_t
from .timing cimport timing_clock
from .tokens cimport tokens_undraft
from .vocab cimport Vocab


cdef class Step:
    """What steps work with and what they count. A Runner fills ``live`` and asks for the steps."""

    def __cinit__(
        self, Context context not None, Vocab vocab not None, Outbox outbox not None, pace_t pace, Drafter drafter
    ):
        self.context = context
        self.drafter = drafter
        if drafter is not None:
            drafter.stretch = pace.draft_stretch
            drafter.mask_seconds = pace.slow_mask_seconds
        self.outbox = outbox
        self.batch = Batch(context.n_batch)
        self.media = MediaBatch(context, pace.cost_decay)
        self.masker = Masker(pace)
        self.output = Output(context, vocab, outbox, self.masker)
        n_mixed = context.n_ubatch if context.mixes else 0
        quota_init(&self.quota, context.n_batch, context.n_ubatch, n_mixed, vocab.pieces.n_tokens, pace)
        # without a memory nobody can run
        n_seq_max = min(context.n_seq_max, LLAMA_MAX_SEQ) if context.memory != NULL else 0
        if live_init(&self.live, context.memory, context.unified, context.n_cuttable, n_seq_max) < 0:
            raise MemoryError
        histograms_init(&self.observed)
        born(RUNNER)
        self.counters.last_step = now()

    def __dealloc__(self):
        if self.counters.last_step:
            died(RUNNER)
        live_free(&self.live)


cdef int step_take(Step self) noexcept nogil:
    """Compute whoever has rows, tokens and media in turns: what the step came to, IDLE where nobody has."""
    cdef sequence_t *s = media_next(&self.live)
    cdef int32_t n_decode
    if s == NULL or not self.media_turn:
        self.media_turn = True
        self.prompts = 1.0 if s == NULL else 0.5
        self.waited = now() - self.told if self.told else 0
        n_decode = rows_fill(
            &self.quota, &self.live, &self.batch.batch, self.prompts, self.waited, self.drafter)
        self.decodes = n_decode > 0 or self.quota.n_elsewhere > 0
        if self.batch.batch.n_tokens:
            look_ahead(self)
            return step_decode(self, n_decode)
        if s == NULL:
            # who has just taken a shared prefix may stand before rows of media
            s = media_next(&self.live)
        if anybody_parked(self):
            self.decodes = True
            masker_wait(self.masker, self.quota.pace.mask_seconds if s == NULL else 0)
            return step_publish(self, now())
    if s != NULL:
        self.media_turn = False
        return step_media(self, s)
    return SAVE_DUE if anybody_due(self) else IDLE


cdef int step_media(Step self, sequence_t *s) noexcept nogil:
    """Compute rows of media that ``s`` has next: PAUSED, SAVE_DUE or llama_decode's code.

    Beside those who decode it takes what their last step has left of the time between two tokens.
    """
    cdef const span_t *span = sequence_span(s)
    cdef pace_t *pace = &self.quota.pace
    cdef counters_t *count = &self.counters
    cdef int32_t n, most = pace.min_prefill if self.decodes else pace.first_prefill
    cdef int code
    cdef double start = now(), seconds = pace.prefill_seconds, fixed, per_row
    if self.decodes:
        # others may have had their part of it
        seconds = self.media_spare - (start - count.last_step)
    if self.media.cost.rows > 0:
        cost_fit(&self.media.cost, &fixed, &per_row)
        most = max(most, <int32_t> min((seconds - fixed) / per_row, 1e6))
    n = media_fill(self.media, s, span, most)
    rows_of_media(&self.live, s, n)
    self.context.set_group(s.seq_id, sequence_group(s))
    code = media_decode(self.media, span)
    count.last_step = now()
    if code != 0:
        return code
    seconds = count.last_step - start
    sequence_reach(s, s.tokens.n_past + n)
    sequence_schedule(s, start)
    cost_add(&self.media.cost, n, seconds)
    glance_part(&self.glance, s, True)
    step_count(self, n, seconds, seconds)
    self.spare = 0 if self.decodes else seconds
    count.sequences += 1
    count.prompt_tokens += n
    count.media_rows += n
    count.prompt_seconds += seconds
    if output_heard(s) and (output_begun(self.output, s) < 0 or outbox_publish(self.outbox) < 0):
        return NO_MEMORY
    return SAVE_DUE if anybody_due(self) else PAUSED


cdef void step_count(Step self, int32_t n_rows, double decode_seconds, double step_seconds) noexcept nogil:
    """Count a step, ``decode_seconds`` of which llama_decode took."""
    cdef counters_t *count = &self.counters
    count.steps += 1
    count.rows += n_rows
    count.rows_max = max(count.rows_max, n_rows)
    count.decode_seconds += decode_seconds
    count.step_seconds += step_seconds
    observe_step(&self.observed, step_seconds, n_rows)
    glance_step(&self.glance, step_seconds)


cdef int step_decode(Step self, int32_t n_decode) noexcept nogil:
    """Decode the batch, ``n_decode`` of whose rows continue a generation; PAUSED when there may be another step."""
    cdef int32_t i, n_rows, n_sequences
    cdef int code
    cdef double start, decoded, sampled, computing = 0
    cdef counters_t *count = &self.counters
    cdef sequence_t *s
    start = now()
    for i in range(self.live.n):
        self.context.set_group(self.live.states[i].seq_id, sequence_group(self.live.states[i]))
    if self.drafter is not None:
        computing = timing_clock(self.context)
    code = context_decode(self.context, &self.batch.batch)
    if code == NO_ROOM and anybody_drafted(self):
        # nobody has to make room for what is drafted
        drafter_drop(&self.live)
        self.drafter.counters.dropped += 1
        self.quota.turn = self.quota.turn_before    # it is still the turn of those who drafted
        n_decode = rows_fill(&self.quota, &self.live, &self.batch.batch, self.prompts, self.waited, None)
        code = context_decode(self.context, &self.batch.batch)
    n_rows = self.batch.batch.n_tokens
    if code != 0:
        drafter_drop(&self.live)
        count.last_step = now()
        return code
    n_sequences = 0
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.rows.n:
            sequence_reach(s, s.tokens.n_past + s.rows.n - s.rows.n_drafted)
            sequence_schedule(s, start)
            s.rolled_back = False
            glance_part(&self.glance, s, False)
            n_sequences += 1
    # the first row waits until the device is done
    for i in range(self.live.n):
        if self.live.states[i].rows.n_outputs:
            llama_get_logits_ith(self.context.ctx, self.live.states[i].rows.first_output)
            break
    decoded = now()
    if self.drafter is not None:
        computing = timing_clock(self.context) - computing
    await_masks(self, decoded - start)
    code = step_publish(self, decoded)
    sampled = count.last_step
    self.spare = quota_spare(
        &self.quota, sampled - start, n_rows, n_decode or min(1, self.quota.n_elsewhere), &self.media_spare
    )
    if n_rows > n_decode:
        cost_add_prompts(
            &self.quota.cost, n_rows, decoded - start, self.quota.pace.excess_weight, self.quota.pace.excess_most
        )
    else:
        cost_add(&self.quota.cost, n_rows, decoded - start)
        if self.drafter is not None:
            times_observe(&self.drafter.times, n_rows, computing)
    if self.drafter is not None:
        self.drafter.times.last = n_rows
    step_count(self, n_rows, decoded - start, sampled - start)
    count.sequences += n_sequences
    count.prompt_tokens += n_rows - n_decode
    count.prompt_seconds += (decoded - start) * (n_rows - n_decode) / n_rows
    count.generated_seconds += (decoded - start) * n_decode / n_rows
    count.sample_seconds += sampled - decoded
    return SAVE_DUE if code == PAUSED and anybody_due(self) else code


cdef void look_ahead(Step self) noexcept nogil:
    """Ask what may follow the tokens that were drafted under grammars."""
    cdef int32_t i
    cdef sequence_t *s
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.rows.n_drafted and s.out.constraint != NULL:
            masker_look_ahead(
                self.masker, s.out.constraint, s.tokens.ids + s.tokens.n_certain, s.rows.n_drafted)


cdef bint anybody_drafted(Step self) noexcept nogil:
    """Whether rows of this step are of drafted tokens."""
    cdef int32_t i
    for i in range(self.live.n):
        if self.live.states[i].rows.n_drafted:
            return True
    return False


cdef int step_publish(Step self, double decoded) noexcept nogil:
    """Choose tokens and hand over what became text: PAUSED, FINISHED or a failure."""
    cdef int code = step_sample(self, decoded)
    if outbox_publish(self.outbox) < 0:
        code = NO_MEMORY
    self.told = self.counters.last_step = now()
    return code


cdef bint anybody_due(Step self) noexcept nogil:
    """Whether somebody is to be saved before it goes on."""
    cdef int32_t i
    for i in range(self.live.n):
        if self.live.states[i].tokens.n_past >= self.live.states[i].tokens.save_at:
            if self.live.states[i].phase != PHASE_ENDED:
                return True
    return False


cdef bint anybody_parked(Step self) noexcept nogil:
    cdef int32_t i
    for i in range(self.live.n):
        if self.live.states[i].phase == PHASE_PARKED:
            return True
    return False


cdef void await_masks(Step self, double decode_seconds) noexcept nogil:
    """Give the masks of this step's rows a little time, those of slow grammars only where nobody could go on."""
    cdef int32_t i, n_late = 0, n_slow = 0, n_chosen = 0
    cdef sequence_t *s
    for i in range(self.live.n):
        s = self.live.states[i]
        if not rows_give_token(s):
            continue
        n_chosen += 1
        if s.out.constraint != NULL and not constraint_in_time(s.out.constraint):
            n_late += 1
            n_slow += s.out.constraint.lane
    if n_late and n_late == n_chosen:
        masker_wait(self.masker, self.quota.pace.mask_seconds)
    elif n_late > n_slow:
        masker_wait(self.masker, self.quota.pace.mask_patience * decode_seconds)


cdef int step_sample(Step self, double decoded) noexcept nogil:
    """Choose tokens for the rows of logits and stage what became text: PAUSED, FINISHED or a failure."""
    cdef int status = PAUSED, code
    cdef int32_t i
    cdef sequence_t *s
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.rows.n and s.out.logprobs.n_scored < s.tokens.n_prompt:
            code = output_score(self.output, s)
            if code != 0:
                return NO_MEMORY if code < 0 else NO_OUTPUT
        if output_heard(s) and output_begun(self.output, s) < 0:
            return NO_MEMORY
        if s.phase != PHASE_PARKED and not rows_give_token(s):
            continue
        code = step_choose(self, s, decoded)
        if code >= NO_MEMORY:
            return code
        status = max(status, code)
    return status


cdef int step_choose(Step self, sequence_t *s, double decoded) noexcept nogil:
    """A sequence's next token, or several, and what became text, staged: PAUSED, FINISHED or a failure."""
    cdef int32_t n_before = s.tokens.n_certain
    cdef int code
    if s.phase == PHASE_PARKED:
        code = NO_MEMORY if output_next(self.output, s, s.out.constraint.row) < 0 else PAUSED
    else:
        code = step_verify(self, s)
    if code != PAUSED:
        return code
    if s.tokens.n_certain > n_before:
        self.counters.generated_tokens += s.tokens.n_certain - n_before
        observe_token(&self.observed, s, decoded)
        live_grow(&self.live, s, n_before)
    if self.drafter is not None and (s.tokens.n_certain > n_before or s.rows.n_drafted):
        drafter_observe(self.drafter, s, n_before)
    if s.phase != PHASE_ENDED:
        return PAUSED
    observe_end(&self.observed, s, decoded)
    return FINISHED


cdef int step_verify(Step self, sequence_t *s) noexcept nogil:
    """Choose a token for the row of a sequence's last certain one, then for those of drafted ones as long as these are
    what is chosen; the others are taken back: PAUSED, NO_MEMORY, NO_OUTPUT or NOT_TAKEN_BACK.

    Memory has what it would have without drafts: not the last token, unless that waits for a mask.
    """
    cdef int32_t i = 0, n, came, agreed, n_drafted = s.rows.n_drafted, decoded = s.tokens.n_past + n_drafted
    cdef int32_t first = s.tokens.n_past - 1    # the token whose row is the first that gives one
    cdef int32_t row = s.rows.first_output + s.rows.n_outputs - 1 - n_drafted
    cdef float *logits
    while True:
        n = s.tokens.n_certain
        logits = llama_get_logits_ith(self.context.ctx, row + i)
        if logits == NULL:
            return NO_OUTPUT
        if output_next(self.output, s, logits) < 0:
            return NO_MEMORY
        # a grammar that leaves no choice gives several at once
        came = s.tokens.n_certain - n
        if came:
            rows_gave(s)
        agreed = 0
        while agreed < came and i + agreed < n_drafted and (
            s.tokens.ids[n + agreed] == s.draft.proposal.tokens[i + agreed]
        ):
            agreed += 1
        if s.phase == PHASE_ENDED:
            agreed = min(agreed, max(0, came - 1))
        sequence_reach(s, n + agreed)
        i += agreed
        if agreed < came or came == 0:
            break
    tokens_undraft(&s.tokens, 0)
    if self.drafter is not None and self.drafter.head is not None:
        # memory ends behind the row that gave the last token
        n = s.tokens.n_past - first
        head_keep(self.drafter.head, s, first, row, n)
    if s.tokens.n_past < decoded:
        if not llama_memory_seq_rm(self.live.memory, s.seq_id, sequence_position(s, s.tokens.n_past), -1):
            return NOT_TAKEN_BACK
        s.rolled_back = self.live.n_cuttable == 0
    return PAUSED
