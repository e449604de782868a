"""Which rows a step computes: decode rows first, drafted ones behind what they follow, then as much of the prompts as
the time allows."""
from libc.stdint cimport INT32_MAX, int32_t

from .constraint cimport MAX_FORCED
from .context cimport UNLIMITED, batch_add
from .cost cimport cost_fit, cost_init
from .drafter cimport Drafter, drafter_fill
from .headers.llama cimport LLAMA_MAX_SEQ, llama_batch
from .live cimport live_follow, live_goals, live_stop
from .pace cimport pace_t
from .sequence cimport (
    PHASE_DECODING, PHASE_FOLLOWING, PHASE_PARKED, PHASE_PREFILLING, sequence_ahead, sequence_enter, sequence_group,
    sequence_position, sequence_span, sequence_t,
)
from .spans cimport span_behind, span_t
from .tokens cimport tokens_undraft


cdef enum:
    ALL_GROUPS = -1


cdef void quota_init(
    quota_t *self, int32_t n_batch, int32_t n_ubatch, int32_t n_mixed, int32_t n_vocab, pace_t pace
) noexcept nogil:
    self.pace = pace
    self.n_batch = n_batch
    self.n_ubatch = n_ubatch
    self.n_mixed = n_mixed
    self.n_scored_max = max(2 * pace.min_prefill, <int32_t> (pace.scored_bytes // (4 * n_vocab)))
    cost_init(&self.cost, pace.cost_decay)


cdef int32_t rows_fill(
    quota_t *self, live_t *live, llama_batch *batch, double prompts, double waited, Drafter drafter
) noexcept nogil:
    """Fill the batch: every sequence that goes on generating, then prompts in this share of the time for them, and not
    in what those who generate have ``waited`` since their last tokens.

    Returns how many rows continue a generation, drafted ones (None: nobody drafts) among them. n_batch >= n_seq_max, so
    every sequence finds at least one row. Where groups of adapters cannot have a step together they take turns.
    """
    cdef int32_t i, spare, budget, turn = ALL_GROUPS, most = self.n_batch, n_decode = 0, n_drafted = 0, n_generating = 0
    cdef int32_t of_media
    cdef bint several = False
    cdef double gone = 0
    cdef sequence_t *s
    batch.n_tokens = 0
    for i in range(live.n):
        s = live.states[i]
        rows_none(s)
        if s.phase == PHASE_FOLLOWING:
            live_follow(live, s)
        if s.phase == PHASE_PREFILLING and is_urgent(s):
            sequence_enter(s, PHASE_DECODING)
        several = several or sequence_group(s) != sequence_group(live.states[0])
    if several and self.n_mixed:
        most = self.n_mixed
    elif several:
        self.turn_before = self.turn
        turn = self.turn = next_turn(live, self.turn)
    self.n_elsewhere = 0
    for i in range(live.n):
        s = live.states[i]
        if s.phase == PHASE_DECODING and has_turn(s, turn):
            n_decode += s.tokens.n_tokens - s.tokens.n_past
        elif s.phase == PHASE_DECODING:
            self.n_elsewhere += 1
    # prompts of one group are a pause of those of another, too
    budget = prefill_budget(self, n_decode + self.n_elsewhere, prompts, waited, 0, False)
    if drafter is not None and (n_decode or drafter.model is not None):
        # what is drafted has to lie in one micro-batch with what it follows
        n_drafted = drafter_fill(
            drafter, live, turn, n_decode, min(budget, n_waiting(live, turn)),
            max(0, min(min(self.n_ubatch, most) - max(n_decode, live.n), self.n_scored_max)))
        gone = drafter.seconds
        if n_drafted and 0 < live.n_cuttable < UNLIMITED:
            # Behind drafts a window leaves more behind than behind what is kept of them, and the next micro-batch would
            # take it.
            most = min(most, self.n_ubatch)
    spare = most - live.n
    for i in range(live.n):
        s = live.states[i]
        if s.phase == PHASE_DECODING and has_turn(s, turn) and s.tokens.n_tokens == s.tokens.n_certain:
            spare -= take_rows(batch, s, live_stop(live, s, 1 + spare)) - 1
            n_generating += s.rows.n if s.tokens.n_past >= s.tokens.n_prompt else 0
        elif s.phase == PHASE_PARKED and s.tokens.n_past == s.tokens.n_tokens:
            # it has no row to compute
            spare += 1
    # Recurrent states can be taken back only in the last pass of a step, and passes are in the order of the rows.
    for i in range(live.n):
        s = live.states[i]
        if s.tokens.n_tokens > s.tokens.n_certain:
            spare -= take_rows(batch, s, live_stop(live, s, 1 + spare)) - 1
            n_generating += s.rows.n
    n_decode += n_drafted + self.n_elsewhere
    budget = min(prefill_budget(self, n_decode, prompts, waited, gone, False), most - batch.n_tokens)
    of_media = min(prefill_budget(self, n_decode, prompts, waited, gone, True), budget)
    fill_prompts(self, live, batch, budget, of_media, turn)
    return n_generating


cdef int32_t n_waiting(const live_t *live, int32_t turn) noexcept nogil:
    """Rows of prompts that somebody could compute."""
    cdef int32_t i, n = 0
    cdef const sequence_t *s
    for i in range(live.n):
        s = live.states[i]
        if s.phase == PHASE_PREFILLING and has_turn(s, turn) and sequence_span(s) == NULL:
            n += sequence_ahead(s)
    return n


cdef bint has_turn(const sequence_t *s, int32_t turn) noexcept nogil:
    return turn == ALL_GROUPS or sequence_group(s) == turn


cdef int32_t next_turn(const live_t *live, int32_t last) noexcept nogil:
    """The group that comes after the last one, of those that somebody who has rows is of."""
    cdef int32_t i, group, after = INT32_MAX, least = INT32_MAX
    cdef const sequence_t *s
    for i in range(live.n):
        s = live.states[i]
        if s.phase == PHASE_DECODING or (s.phase == PHASE_PREFILLING and sequence_span(s) == NULL):
            group = sequence_group(s)
            least = min(least, group)
            if group > last:
                after = min(after, group)
    return after if after != INT32_MAX else least


cdef void rows_none(sequence_t *s) noexcept nogil:
    """A sequence has no part in the last step, or not yet in the next one."""
    s.rows.n = s.rows.n_outputs = s.rows.n_drafted = s.rows.n_gave = 0


cdef void rows_of_media(live_t *live, sequence_t *s, int32_t n) noexcept nogil:
    """The next step computes ``n`` rows of media of ``s``, and nobody else's."""
    cdef int32_t i
    for i in range(live.n):
        rows_none(live.states[i])
        if live.states[i].phase == PHASE_FOLLOWING:
            # what it waits for may be there no more once its leader has gone on
            live_follow(live, live.states[i])
    s.rows.n = n


cdef void fill_prompts(
    quota_t *self, live_t *live, llama_batch *batch, int32_t budget, int32_t of_media, int32_t turn
) noexcept nogil:
    """Divide ``budget`` rows among prompts: half of them to the one that was admitted first, the others to whoever
    needs the fewest until it, or somebody who waits for its prefix, can go on. So short prompts do not wait for a long
    one, nor the long one for all the short ones that come. So are the logits of prompts that are scored. Prompts with
    media add nothing beyond ``of_media`` rows, whoever has those.
    """
    cdef int32_t i, n, reserved, n_waiting = 0, n_scored = self.n_scored_max, n_reserved = 0
    cdef sequence_t *s
    cdef sequence_t *first = NULL
    cdef sequence_t *waiting[LLAMA_MAX_SEQ]
    live_goals(live)
    for i in range(live.n):
        s = live.states[i]
        if s.phase == PHASE_PREFILLING and sequence_span(s) == NULL and has_turn(s, turn):
            if first == NULL:
                first = s
            else:
                waiting[n_waiting] = s
                n_waiting += 1
    if first == NULL:
        return
    reserved = min(((of_media if first.tokens.n_spans else budget) + 1) // 2, sequence_ahead(first)) if n_waiting else 0
    budget -= reserved
    of_media -= reserved
    if is_scored(first):
        n_reserved = min(n_scored // 2, reserved)
        n_scored -= n_reserved
    while n_waiting and budget > 0:
        s = take_nearest(waiting, &n_waiting)
        n = take_prompt_rows(live, batch, s, min(budget, of_media) if s.tokens.n_spans else budget, &n_scored)
        budget -= n
        of_media -= n
    n_scored += n_reserved
    take_prompt_rows(
        live, batch, first, (max(of_media, 0) if first.tokens.n_spans else budget) + reserved, &n_scored)


cdef sequence_t *take_nearest(sequence_t **waiting, int32_t *n_waiting) noexcept nogil:
    """Take out of ``waiting``, in order of admission, the first of those with the fewest rows to their goal."""
    cdef int32_t i, best = 0
    cdef sequence_t *nearest
    for i in range(1, n_waiting[0]):
        if waiting[i].share.goal - waiting[i].tokens.n_past < waiting[best].share.goal - waiting[best].tokens.n_past:
            best = i
    nearest = waiting[best]
    n_waiting[0] -= 1
    for i in range(best, n_waiting[0]):
        waiting[i] = waiting[i + 1]
    return nearest


cdef bint is_scored(const sequence_t *s) noexcept nogil:
    """Whether each of its next rows gives logits."""
    return s.out.logprobs.n_scored < s.tokens.n_prompt


cdef int32_t take_prompt_rows(
    live_t *live, llama_batch *batch, sequence_t *s, int32_t budget, int32_t *n_scored
) noexcept nogil:
    """Add at most ``budget`` rows of a prompt; returns how many. Where it is scored each of them gives logits, of which
    the step takes ``n_scored`` more."""
    cdef bint scored = is_scored(s)
    if scored:
        budget = min(budget, n_scored[0])
    if budget <= 0:
        return 0
    budget = take_rows(batch, s, live_stop(live, s, budget))
    if scored:
        n_scored[0] -= budget
    return budget


cdef double quota_gap(const quota_t *self, double decode_seconds) noexcept nogil:
    """The most seconds between two tokens of those who decode, where a step without prompts takes ``decode_seconds``.
    """
    if self.pace.target_itl > 0:
        return self.pace.target_itl
    return max(self.pace.gap_stretch * decode_seconds, self.pace.gap_seconds)


cdef double media_gap(const quota_t *self, double decode_seconds) noexcept nogil:
    """The same where it is media that somebody waits for."""
    cdef double gap = quota_gap(self, decode_seconds)
    return gap if self.pace.target_itl > 0 else min(gap, self.pace.media_stretch * decode_seconds)


cdef double quota_spare(
    const quota_t *self, double seconds, int32_t n_rows, int32_t n_decode, double *media
) noexcept nogil:
    """How long others may compute after a step of ``seconds`` that had ``n_decode`` decode rows of ``n_rows``, and how
    much of that rows of ``media`` may take. What its prompt rows took has gone already from what the others may take.
    """
    cdef double fixed, per_row, least, decode_seconds = seconds
    media[0] = seconds
    if n_decode == 0:
        return seconds
    if n_rows > n_decode and self.cost.rows > 0:
        cost_fit(&self.cost, &fixed, &per_row)
        decode_seconds = min(seconds, fixed + per_row * n_decode)
    least = self.pace.least_spare * seconds
    media[0] = max(media_gap(self, decode_seconds) - seconds, least)
    return max(quota_gap(self, decode_seconds) - seconds, least)


cdef bint is_urgent(const sequence_t *s) noexcept nogil:
    """Whether the rows it needs are not to wait for anybody's prompt: its newest token, or several it was forced to."""
    cdef int32_t n_pending = s.tokens.n_tokens - s.tokens.n_past
    return n_pending == 1 or (s.tokens.n_past >= s.tokens.n_prompt and n_pending <= MAX_FORCED)


cdef int32_t take_rows(llama_batch *batch, sequence_t *s, int32_t most) noexcept nogil:
    """Add the next rows of a sequence, up to a span of media or where it gets another group; returns how many. Logits
    are given by the row of its last certain token, by those of drafted ones, and by those that score its prompt."""
    cdef int32_t k
    cdef bint output
    cdef const span_t *span = NULL
    s.rows.n = min(most, sequence_ahead(s))
    if s.tokens.n_spans:
        span = span_behind(s.tokens.spans, s.tokens.n_spans, s.tokens.n_past)
        if span != NULL:
            s.rows.n = max(0, min(s.rows.n, span.row - s.tokens.n_past))
    s.rows.n_drafted = max(0, s.tokens.n_past + s.rows.n - s.tokens.n_certain)
    tokens_undraft(&s.tokens, s.rows.n_drafted)
    for k in range(s.tokens.n_past, s.tokens.n_past + s.rows.n):
        output = s.out.logprobs.n_scored <= k + 1 < s.tokens.n_prompt or k >= s.tokens.n_certain - 1
        if output and not s.rows.n_outputs:
            s.rows.first_output = batch.n_tokens
        s.rows.n_outputs += output
        batch_add(batch, s.tokens.ids[k], sequence_position(s, k), s.seq_id, output)
    return s.rows.n


cdef int32_t prefill_budget(
    const quota_t *self, int32_t n_decode, double share, double waited, double gone, bint of_media
) noexcept nogil:
    """How many prompt rows may join a step with ``n_decode`` decode rows, in this share of the time for prompts, of
    which so many seconds are ``gone`` already. Those who decode have ``waited`` before it: that is a part of their gap,
    whatever took it. Prompts ``of_media`` stretch it no more than their media do."""
    cdef double per_row, fixed, seconds, decode_seconds, room
    if n_decode and self.pace.prefill_chunk:
        return self.pace.prefill_chunk
    if self.cost.rows == 0:
        return self.pace.min_prefill if n_decode else self.pace.first_prefill
    cost_fit(&self.cost, &fixed, &per_row)
    seconds = self.pace.prefill_seconds
    if n_decode:
        decode_seconds = fixed + per_row * n_decode
        room = (media_gap(self, decode_seconds) if of_media else quota_gap(self, decode_seconds)) - decode_seconds
        seconds = decode_seconds + min(share * room, max(0, room - waited))
    seconds -= gone
    return max(
        self.pace.min_prefill, <int32_t> min((seconds / self.cost.excess - fixed) / per_row, 1e6) - n_decode
    )
