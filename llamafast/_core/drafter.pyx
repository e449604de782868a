"""Who drafts for which sequence, and how many of the drafted tokens a step decodes.

For each sequence the source whose tokens are the likelier to come proposes; of all proposals those rows are taken with
which a step gives most useful rows per second: rows that would be computed anyway, and drafted ones by their chance to
be what comes. What a step of so many rows takes is measured, when the model is loaded and from then on. As adaptive
verification in vLLM, and TurboSpec before it (Liu et al., arXiv 2406.14066), but for the ledger: each sequence has one,
and where what was drafted for it has cost more than it has saved, nothing is drafted, whatever the chances are taken
for.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from .acceptance cimport acceptance_chance, acceptance_init, acceptance_learn, acceptance_prefer, acceptance_rate
from .answers cimport answers_clear, answers_free, answers_init, answers_keep, answers_propose, answers_size
from .calls cimport calls_add, calls_fill, calls_init, calls_plan, calls_t
from .chains cimport chains_free
from .constrained cimport (
    constrained_drafts, constrained_limit, constrained_saved, constrained_seconds, constrained_weigh,
)
from .context cimport Context
from .cost cimport MAX_TIMED, times_of, times_with
from .draft cimport MAX_DRAFT, draft_t, proposal_t
from .draft_model cimport DraftModel
from .headers.clock cimport now
from .headers.llama cimport LLAMA_MAX_SEQ
from .leaks cimport DRAFTER, born, died
from .ledger cimport ledger_lost, ledger_proven, ledger_saved
from .live cimport live_stop, live_t
from .lookup cimport lookup_observe, lookup_own, lookup_prediction
from .nextn cimport Head
from .plan cimport plan_passes, plan_pays, plan_rows, plan_spare, weight_t
from .proposer cimport NEAR, RESTS, Proposer, proposer_draft, proposer_seconds
from .sequence cimport PHASE_DECODING, PHASE_ENDED, PHASE_PREFILLING, sequence_group, sequence_t
from .timing cimport timing_measure
from .tokens cimport tokens_draft, tokens_undraft

cdef enum:
    INDEXED_A_STEP = 4096       # tokens: some 50 microseconds


cdef class Drafter:
    """Drafts for the sequences of one Context, up to ``most`` tokens each, none where more than ``most_sequences``
    decode. With ``looks_up`` tokens are looked up for all of them, else only for those with a prediction;
    a ``head`` and a draft ``model`` of the same context draft where that promises more.
    ``answers_bytes`` bound what is kept of finished answers. Engine thread only, but for ``counts``.
    """

    def __cinit__(
        self, Context context not None, *, int32_t most, int32_t most_sequences, bint looks_up, int64_t answers_bytes,
        Head head=None, DraftModel model=None
    ):
        if not 0 < most <= MAX_DRAFT:
            raise ValueError(f"drafts of {most} tokens: expected 1 to {MAX_DRAFT}")
        self.context = context
        self.most = min(most, context.n_undo)
        self.most_sequences = most_sequences
        self.looks_up = looks_up
        self.head = head
        self.model = model
        self.recurrent = context.n_cuttable == 0
        self.in_passes = not context.unified or self.recurrent
        acceptance_init(&self.acceptance)
        if answers_init(&self.answers, answers_bytes if looks_up else 0) < 0:
            raise MemoryError
        born(DRAFTER)

    def __dealloc__(self):
        if self.most_sequences:
            died(DRAFTER)
        answers_free(&self.answers)

    def time_steps(self, int32_t token, double seconds):
        """Measure what steps of different numbers of rows take, for so long at most, but for two steps of one row and
        one of four; before it nobody drafts. Nothing may run. The seconds by the number of rows; RuntimeError where
        llama_decode fails."""
        return timing_measure(self.context, &self.times, token, seconds)

    def forget_answers(self):
        """Nobody is told any more what was answered before, nor lent what was computed of it."""
        answers_clear(&self.answers)
        if self.model is not None:
            self.model.forget()

    def counts(self):
        """What was drafted since the start. Any thread; never waits for a step."""
        cdef draft_counters_t *count = &self.counters
        return {
            "draft_proposals": count.proposals, "draft_tokens_proposed": count.proposed,
            "draft_batches_verified": count.verified, "draft_tokens_verified": count.drafted,
            "draft_tokens_accepted": count.accepted, "draft_refused": count.refused, "draft_dropped": count.dropped,
            "draft_calls": count.calls, "draft_observed": count.observed, "draft_most": self.most,
            "draft_generate_seconds": count.propose_seconds, "draft_process_seconds": count.observe_seconds,
            "draft_answers_bytes": answers_size(&self.answers),
            **counts_of("head", self.head), **counts_of("model", self.model),
            **{f"draft_{name}_verified": count.drafted_by[i] for i, name in enumerate(SOURCE_NAMES)},
            **{f"draft_{name}_accepted": count.accepted_by[i] for i, name in enumerate(SOURCE_NAMES)},
            **{f"draft_length_{i}": count.lengths[i] for i in range(MAX_DRAFT + 1)},
        }


SOURCE_NAMES = ("own", "prediction", "answers", "head", "model")


cdef dict counts_of(str name, Proposer proposer):
    counts = dict.fromkeys(("calls", "rows", "failures"), 0) if proposer is None else proposer.counts()
    return {f"{name}_{key}": count for key, count in counts.items()}


cdef int32_t drafter_fill(
    Drafter self, live_t *live, int32_t turn, int32_t n_decode, int32_t n_prompt, int32_t room
) noexcept nogil:
    """Draft for those who decode, of the group that has the ``turn`` (below 0: of any), up to ``room`` rows, in a step
    of ``n_decode`` rows besides and about ``n_prompt`` of prompts; how many rows that are."""
    cdef sequence_t *drafting[LLAMA_MAX_SEQ]
    cdef int32_t taken[LLAMA_MAX_SEQ]
    cdef sequence_t *s
    cdef int32_t i, spare, n_drafted = 0, n = 0, n_decoding = 0, n_waiting = 0, n_proven = 0
    cdef int32_t useful = n_decode + n_prompt
    cdef bint sure
    cdef int64_t n_cells = 0
    cdef double start = now()
    self.seconds = 0
    self.to_index = INDEXED_A_STEP
    for i in range(live.n):
        if live.states[i].phase == PHASE_DECODING:
            n_decoding += 1
            n_cells += live.states[i].tokens.n_past
        live.states[i].draft.proposal.n = 0
    self.times.cells = n_cells / <double> max(1, n_decoding)
    if n_decoding > self.most_sequences or (self.times.seconds[1] == 0 and self.propose == NULL):
        return 0
    if self.model is not None and self.propose == NULL:
        fill_model(self, live, n_decode, useful)
    # passes behind the one that has drafted rows would move states that are to be taken back
    if n_decoding == 0 or (self.recurrent and (n_prompt or n_decode != n_decoding)):
        self.counters.propose_seconds += now() - start
        return 0
    for i in range(live.n):
        s = live.states[i]
        if s.phase != PHASE_DECODING or (turn >= 0 and sequence_group(s) != turn):
            continue
        n_waiting += 1
        if may_draft(self, s):
            n_proven += ledger_proven(&s.draft)
            propose(self, live, s)
            drafting[n] = s
            n += 1
    # who makes a step longer makes others wait: half of them at least are to gain by it
    sure = 2 * n_proven >= n_waiting
    # what was looked up is proven without a row, what models draft by one at least
    spare = plan_spare(&self.times, useful, self.stretch)
    if self.head is not None or self.model is not None:
        spare = max(spare, 1)
    if self.propose == NULL and n:
        self.row_seconds = times_with(&self.times, useful, 0) / useful
        if self.head is not None:
            ask(self, self.head, SOURCE_HEAD, live, drafting, n, useful, room, spare, sure)
        if self.model is not None:
            ask(self, self.model, SOURCE_MODEL, live, drafting, n, useful, room, spare, sure)
    n = keep_proposals(self, drafting, n)
    if n:
        self.counters.calls += 1
        room = min(room, <int32_t> MAX_TIMED)
        choose(self, drafting, taken, n, useful, room, spare, sure, constrained_seconds(live))
        for i in range(n):
            # without memory nothing is drafted
            if taken[i] and tokens_draft(&drafting[i].tokens, drafting[i].draft.proposal.tokens, taken[i]) == 0:
                n_drafted += taken[i]
    if n_drafted and self.times.seconds[1] > 0:
        self.row_seconds = times_with(&self.times, useful, 0) / useful
        self.row_cost = (times_with(&self.times, useful, n_drafted) / self.row_seconds - useful) / n_drafted
    self.counters.propose_seconds += now() - start
    return n_drafted


cdef int32_t keep_proposals(Drafter self, sequence_t **drafting, int32_t n) noexcept nogil:
    """Those that have one, and whose ledger allows it."""
    cdef int32_t i, n_kept = 0
    cdef draft_t *draft
    for i in range(n):
        draft = &drafting[i].draft
        if draft.proposal.n == 0:
            continue
        self.counters.proposals += 1
        self.counters.proposed += draft.proposal.n
        # what a model was asked for is paid already
        if self.propose == NULL and draft.source < SOURCE_HEAD and ledger_lost(draft):
            self.counters.refused += 1
            continue
        drafting[n_kept] = drafting[i]
        n_kept += 1
    return n_kept


cdef void fill_model(Drafter self, const live_t *live, int32_t n_decode, int32_t useful) noexcept nogil:
    """Compute a slice of what the draft model's memory lacks of those who decode, then of prompts that are computed, in
    a step of so many ``useful`` rows."""
    cdef calls_t calls
    cdef sequence_t *s
    cdef int32_t i, phase, most, lacks, turn
    self.model.make_room(live)
    calls_init(&calls, &self.acceptance, &self.times, SOURCE_MODEL, self.in_passes, 0, MAX_TIMED)
    for turn in range(2):
        phase = PHASE_PREFILLING if turn else PHASE_DECODING
        for i in range(live.n):
            s = live.states[i]
            most = min(self.most, s.tokens.n_max - s.tokens.n_certain - 1)
            if s.phase != phase or not wants_drafts(s) or most <= 0 or ledger_lost(&s.draft):
                continue
            lacks = self.model.behind(s)
            if lacks > NEAR:
                calls_add(&calls, s, most, lacks)
    if calls.n:
        calls.useful = max(n_decode, calls.n)
        self.seconds += calls_fill(&calls, self.model, times_of(&self.times, useful), self.stretch - 1)


cdef void ask(
    Drafter self, Proposer proposer, int32_t source, const live_t *live, sequence_t **drafting, int32_t n,
    int32_t useful, int32_t room, int32_t spare, bint sure
) noexcept nogil:
    """Let a model draft for those for whom it promises more than they have, as many tokens as pay for its calls."""
    cdef calls_t calls
    cdef int32_t i, most, lacks, n_best
    cdef int64_t n_rows = 0     # that its memory is to have room for
    cdef draft_t *draft
    cdef double seconds
    calls_init(&calls, &self.acceptance, &self.times, source, self.in_passes, useful, room)
    for i in range(n):
        draft = &drafting[i].draft
        most = most_of(self, live, drafting[i])
        if most <= 0 or ledger_lost(draft) or draft.proposal.n and draft.survival[0] > acceptance_chance(
            &self.acceptance, source, 0
        ):
            continue
        lacks = proposer.behind(drafting[i])
        if not sure or not ledger_proven(draft):
            most = min(most, spare)
        # one row at least of whoever comes behind it is in the same batch
        if 0 < lacks <= NEAR and lacks + calls.n_fed + calls.n + n - i - 1 <= proposer.capacity and (
            n_rows + lacks + most <= proposer.n_free
        ):
            calls_add(&calls, drafting[i], most, lacks)
            n_rows += lacks + most
    if calls.n == 0:
        return
    proposer.rested += 1
    n_best = calls_plan(&calls, proposer)
    if n_best == 0:
        if proposer.rested < RESTS:
            return
        n_best = 1
        for i in range(calls.n):
            calls.lengths[i] = 1
    proposer.rested = 0
    seconds = proposer_seconds(proposer, calls.n, n_best, calls.n_fed)
    self.seconds += seconds
    if proposer_draft(proposer, calls.asking, calls.lengths, calls.n, calls.n_fed) != 0:
        return
    proposer.spent += seconds
    for i in range(calls.n):
        draft = &calls.asking[i].draft
        draft.proposal.n_matched = 0
        draft.proposal.first = 1
        acceptance_rate(&self.acceptance, draft, source, False)
        ledger_saved(draft, -seconds / calls.n / self.row_seconds)


cdef bint wants_drafts(const sequence_t *s) noexcept nogil:
    return s.out.options.speculative and constrained_drafts(s)


cdef bint may_draft(Drafter self, const sequence_t *s) noexcept nogil:
    return wants_drafts(s) and s.tokens.n_certain > s.tokens.n_prompt and (
        self.looks_up or s.draft.prediction.n or self.propose != NULL or self.head is not None
        or self.model is not None)


cdef void choose(
    Drafter self, sequence_t **drafting, int32_t *taken, int32_t n, int32_t useful, int32_t room, int32_t spare,
    bint sure, double beside
) noexcept nogil:
    """How many tokens of each proposal are decoded, in a step beside which masks take so long in any case."""
    cdef const float *survival[LLAMA_MAX_SEQ]
    cdef weight_t weights[LLAMA_MAX_SEQ]
    cdef int32_t lengths[LLAMA_MAX_SEQ]
    cdef int32_t i
    cdef double gain
    memset(taken, 0, <size_t> n * sizeof(int32_t))
    for i in range(n):
        survival[i] = drafting[i].draft.survival
        lengths[i] = drafting[i].draft.proposal.n
        constrained_weigh(drafting[i], &weights[i])
    if self.propose != NULL:
        for i in range(n):
            taken[i] = min(lengths[i], lengths[0] if self.in_passes else room)
            if taken[i] > room or (self.in_passes and taken[i] < lengths[0]):
                taken[i] = 0
            room -= taken[i]
    else:
        constrained_limit(
            drafting, lengths, weights, n, self.mask_seconds, times_of(&self.times, useful) - beside)
        limit(drafting, lengths, n, spare, sure)
        if self.in_passes:
            gain = plan_passes(&self.times, survival, lengths, weights, n, useful, room, beside, taken)
        else:
            gain = plan_rows(&self.times, survival, lengths, weights, n, useful, room, beside, taken)
        if not plan_pays(gain):
            memset(taken, 0, <size_t> n * sizeof(int32_t))


cdef void limit(sequence_t **drafting, int32_t *lengths, int32_t n, int32_t left, bint sure) noexcept nogil:
    """Let those whose drafts are not known for good have as many rows, all together, as a step may be longer for, which
    nobody's make longer where ``sure`` is not said. And let nobody's be much longer than what was right so far."""
    cdef int32_t i
    cdef draft_t *draft
    for i in range(n):
        draft = &drafting[i].draft
        if draft.source < SOURCE_HEAD:
            lengths[i] = min(lengths[i], max(left, draft.in_a_row))
        if not sure or not ledger_proven(draft):
            lengths[i] = min(lengths[i], left)
            left -= lengths[i]


cdef int32_t most_of(Drafter self, const live_t *live, const sequence_t *s) noexcept nogil:
    """The most tokens that may be drafted for a sequence: behind them there is room for one more, and its state is
    nowhere taken back to where it is to be saved or lent."""
    cdef int32_t most = min(self.most, s.tokens.n_max - s.tokens.n_certain - 1)
    cdef int32_t pending = s.tokens.n_certain - s.tokens.n_past
    cdef int32_t stop = live_stop(live, s, pending + most) - pending
    if stop >= most:
        return most
    return 0 if self.recurrent else max(0, stop)


cdef void propose(Drafter self, const live_t *live, sequence_t *s) noexcept nogil:
    """The proposal of the source that promises most."""
    cdef draft_t *draft = &s.draft
    cdef int32_t most = most_of(self, live, s)
    cdef proposal_t other
    if most <= 0:
        return
    if self.propose != NULL:
        self.propose(self.proposer, s, most, &draft.proposal)
        acceptance_rate(&self.acceptance, draft, SOURCE_OWN, self.propose != NULL)
        return
    if (self.looks_up or draft.prediction.n) and lookup_own(s, most, &self.to_index, &draft.proposal):
        acceptance_rate(&self.acceptance, draft, SOURCE_OWN, self.propose != NULL)
    if draft.prediction.n and lookup_prediction(s, most, &self.to_index, &other):
        acceptance_prefer(&self.acceptance, draft, SOURCE_PREDICTION, &other)
    if self.looks_up:
        answers_propose(&self.answers, s, most, &other)
        if other.n:
            acceptance_prefer(&self.acceptance, draft, SOURCE_ANSWERS, &other)


cdef void drafter_drop(live_t *live) noexcept nogil:
    """Nothing of what was drafted for this step is decoded."""
    cdef int32_t i
    for i in range(live.n):
        tokens_undraft(&live.states[i].tokens, 0)


cdef void drafter_observe(Drafter self, sequence_t *s, int32_t n_before) noexcept nogil:
    """A sequence that had ``n_before`` tokens got more, or rows were decoded in vain because its mask is late: learn
    from what was proposed, decoded or not."""
    cdef draft_t *draft = &s.draft
    cdef const int32_t *came = s.tokens.ids + n_before
    cdef int32_t n_new = s.tokens.n_certain - n_before, accepted = 0
    cdef double start = now(), saved
    # what comes of a row that has waited for its mask was proposed a step before
    if n_new and s.rows.n:
        accepted = min(acceptance_learn(&self.acceptance, draft, came, n_new), s.rows.n_drafted)
    if n_new:
        lookup_observe(&draft.prediction, came, n_new)
        self.counters.observed += 1
    draft.rows += n_new
    if s.rows.n_drafted:
        self.counters.verified += 1
        self.counters.drafted += s.rows.n_drafted
        self.counters.drafted_by[draft.source] += s.rows.n_drafted
        self.counters.accepted += accepted
        self.counters.accepted_by[draft.source] += accepted
        self.counters.lengths[accepted] += 1
        draft.n_decoded += s.rows.n_drafted
        draft.n_accepted += accepted
        saved = constrained_saved(s, accepted, self.row_cost, self.row_seconds)
        ledger_saved(draft, saved)
        if draft.source == SOURCE_MODEL and self.model is not None:
            self.model.spent -= saved * self.row_seconds
    if s.phase == PHASE_ENDED:
        if self.looks_up:
            answers_keep(&self.answers, s)
        chains_free(&draft.own)
        chains_free(&draft.prediction.chains)
    self.counters.observe_seconds += now() - start
