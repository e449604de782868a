"""The loop around llama_decode.

``Runner.run`` steps without the GIL until Python has something to decide: a sequence finished, somebody called
``interrupt``, or llama_decode refused. One step is fill, decode, sample, detokenise, match stops, publish. The steady
state of decoding takes no Python decision and no lock but the Outbox's.
"""
from libc.stdint cimport int32_t, int64_t

from .balance cimport RUNNER, born, died
from .batching cimport batching_fill, batching_init, batching_spare
from .choosing cimport Chooser, chooser_next, chooser_score
from .constraint cimport MASK_NONE, Masker, constraint_ready, masker_ask, masker_wait
from .context cimport Batch, Context
from .cost cimport cost_add, cost_fit
from .headers.clock cimport now
from .headers.llama cimport (
    llama_decode, llama_get_logits_ith, llama_memory_seq_pos_max, llama_memory_seq_rm,
)
from .histograms cimport histograms_init, histograms_read, observe_admitted, observe_step, observe_token
from .outbox cimport Outbox, outbox_publish
from .prefiller cimport Prefiller, prefiller_logits, prefiller_slice
from .prefix cimport BLOCK
from .running cimport (
    MAX_RUNNING, running_add, running_clear, running_free, running_init, running_longest, running_note,
    running_remove,
)
from .sequence cimport FINISH_HALTED, FINISH_LENGTH, FINISH_NONE, FINISH_STOP, Sequence, sequence_t
from .vocab cimport Vocab


cdef extern from *:
    """
    static inline int flag_load(int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
    static inline void flag_store(int *flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
    """
    int flag_load(int *flag) noexcept nogil
    void flag_store(int *flag, int value) noexcept nogil


cdef enum:
    # status of run(); failures of llama_decode are its own negative codes and 2
    RUN_PAUSED = 0      # interrupt() or max_steps
    RUN_NO_ROOM = 1     # llama_decode's own 1: nothing changed
    RUN_FINISHED = 3
    RUN_NO_MEMORY = 4
    RUN_SAVE_DUE = 5    # somebody has reached its save_at
    RUN_PREFILLED = 6   # the Prefiller's batch is computed

PAUSED = RUN_PAUSED
NO_ROOM = RUN_NO_ROOM
FINISHED = RUN_FINISHED
SAVE_DUE = RUN_SAVE_DUE
PREFILLED = RUN_PREFILLED

# How long a step waits for masks that are late: while others could go on, as a share of llama_decode's time, and
# where everybody waits for a mask, in seconds.
cdef double MASK_PATIENCE = 0.1
cdef double MASK_SECONDS = 0.05

# The Prefiller's slice while nothing else is to be computed: so soon a new request or a cancel is heard.
cdef double SLICE_SECONDS = 0.05


cdef class Runner:
    """Runs up to ``context.n_seq_max`` Sequences in one Context. All methods but ``interrupt``, ``counts``,
    ``histograms`` and ``since_last_step`` belong to the engine thread.

    ``target_itl``: how many seconds a step that also decodes may take, as far as its prompt rows decide that; 0:
    STRETCH times what it would take without them, or STRETCH_SECONDS. ``prefill_chunk``: most prompt rows of such a
    step, whatever they take; 0 leaves it to the time. What the ``prefiller`` has to compute gets slices between steps,
    within the same time.
    """

    def __cinit__(self, Context context not None, Vocab vocab not None, Outbox outbox not None, *,
                  int32_t prefill_chunk=0, double target_itl=0, Prefiller prefiller=None):
        self.context = context
        self.outbox = outbox
        self.batch = Batch(context.n_batch)
        self.prefiller = prefiller
        self.masker = Masker()
        self.chooser = Chooser(context, vocab, outbox, self.masker)
        batching_init(&self.batching, context.n_batch, vocab.pieces.n_tokens, prefill_chunk, target_itl)
        self.running = []
        # without a memory nobody can run
        self.free_seq_ids = list(reversed(range(min(context.n_seq_max, MAX_RUNNING)))) if context.memory != NULL else []
        if running_init(&self.live, context.memory, context.unified, context.n_cuttable) < 0:
            raise MemoryError
        histograms_init(&self.observed)
        born(RUNNER)
        self.counters.last_step = now()

    def __dealloc__(self):
        if self.counters.last_step:
            died(RUNNER)
        running_free(&self.live)

    @property
    def n_running(self):
        return self.live.n

    @property
    def n_free(self):
        """Sequence ids nobody has."""
        return len(self.free_seq_ids)

    @property
    def n_cells(self):
        """Positions in memory; one that several sequences share counts for each."""
        cdef int64_t cells = 0
        cdef int32_t i
        for i in range(self.live.n):
            cells += self.live.states[i].n_past
        return cells

    @property
    def total_cells(self):
        return self.context.n_ctx

    def shareable(self, Sequence sequence not None):
        """How many of its tokens a waiting sequence would get from the running ones."""
        return running_longest(&self.live, &sequence.state)

    @property
    def in_parts(self):
        """Whether a state can be saved and restored in parts; where not, every part begins at 0."""
        return self.context.scratch >= 0

    @property
    def n_cuttable(self):
        """A sequence of up to so many tokens can be cut anywhere, a longer one not at all."""
        return self.context.n_cuttable

    @property
    def row_seconds(self):
        """What one more row adds to a step, by the recent ones; 0 before the first."""
        cdef double fixed, per_row
        if self.batching.cost.rows == 0:
            return 0.0
        cost_fit(&self.batching.cost, &fixed, &per_row)
        return per_row

    def add(self, Sequence sequence not None, int32_t n_restore=0):
        """Let a sequence run. What another running sequence has computed of its tokens, or is about to, is shared.

        It waits until ``restore`` has brought its first ``n_restore`` tokens (fewer than it has), or has failed to.
        Raises IndexError where there is no free sequence id.
        """
        cdef sequence_t *s = &sequence.state
        if s.seq_id >= 0 or s.finish != FINISH_NONE:
            raise ValueError("the sequence runs already or has finished")
        if not 0 <= n_restore < s.n_tokens:
            raise ValueError(f"{n_restore} tokens to restore for a sequence of {s.n_tokens}")
        s.seq_id = self.free_seq_ids.pop()
        s.n_rows = 0
        s.n_past = 0
        s.n_restore = s.n_found = n_restore
        if s.constraint != NULL and s.constraint.state == MASK_NONE and masker_ask(self.masker, s.constraint, -1) < 0:
            raise MemoryError
        observe_admitted(&self.observed, s)
        self.running.append(sequence)
        running_add(&self.live, s)

    def prefilled(self, Sequence sequence not None, int32_t n_restore, int32_t n_found, int32_t row=-1):
        """Tell a running sequence how many of its tokens the Prefiller has, ``n_found`` of them not computed for it.

        It now waits until these are restored. They may be fewer than it was added with; where they are all it has,
        ``row`` of the Prefiller's last batch gives its next token.
        """
        cdef sequence_t *s = &sequence.state
        cdef float *logits = NULL
        cdef int status
        if s.seq_id < 0 or not s.n_past <= n_restore <= (s.n_restore if row < 0 else s.n_tokens):
            raise ValueError(f"{n_restore} instead of {s.n_restore} tokens to restore")
        if row >= 0:
            logits = prefiller_logits(self.prefiller, row)
            if n_restore != s.n_tokens or logits == NULL:
                raise ValueError(f"row {row} for {n_restore} of {s.n_tokens} tokens")
        s.n_restore = n_restore
        s.n_found = n_found
        if row < 0 or s.finish != FINISH_NONE:
            return
        # the record of its first token tells what was cached
        note_cached(self, s, n_found)
        s.n_found = 0
        with nogil:
            status = runner_choose(self, s, logits, now())
            if outbox_publish(self.outbox) < 0:
                status = RUN_NO_MEMORY
        if status == RUN_NO_MEMORY:
            raise MemoryError

    def restore(self, Sequence sequence not None, bytes saved not None, int32_t start, int32_t stop):
        """Give a running sequence its tokens [start, stop) out of what ``save`` gave for the same tokens.

        ``start`` is where its memory ends; without ``in_parts`` it does not count, for ``saved`` is everything up to
        its end. Returns False where llama.cpp does not take it; then the rest is computed.
        """
        cdef sequence_t *s = &sequence.state
        cdef int32_t before = s.n_past, seq_id = s.seq_id
        cdef bint done
        if seq_id < 0 or not start < stop <= s.n_restore:
            raise ValueError(f"tokens {start} to {stop} of {s.n_restore} to restore")
        if self.context.scratch >= 0:
            if start != s.n_past:
                raise ValueError(f"tokens from {start} on after {s.n_past}")
            done = self.context.restore_part(seq_id, saved, start, stop)
            # what could not be restored is computed
            s.n_restore = s.n_restore if done else s.n_past
        else:
            done = self.context.set_state(seq_id, saved)
            done = done and llama_memory_seq_rm(self.context.memory, seq_id, stop, -1)
            done = done and llama_memory_seq_pos_max(self.context.memory, seq_id) == stop - 1
            if not done:
                s.n_past = s.n_restore = 0
        if done:
            s.n_past = stop
        else:
            llama_memory_seq_rm(self.context.memory, seq_id, s.n_past, -1)
        note_cached(self, s, min(s.n_past, s.n_found) - min(before, s.n_found))
        return done

    def save(self, Sequence sequence not None, int32_t start, int32_t stop):
        """The state of a running sequence's tokens [start, stop) as bytes.

        Without ``in_parts`` it is everything; ``stop`` must be ``n_past`` then, and wherever it cannot be cut.
        """
        cdef sequence_t *s = &sequence.state
        if s.seq_id < 0 or not 0 <= start < stop <= s.n_past:
            raise ValueError(f"tokens {start} to {stop} of {s.n_past} in memory")
        if stop < s.n_past and (self.context.scratch < 0 or s.n_past > self.context.n_cuttable):
            raise ValueError(f"a state of {s.n_past} tokens cannot be cut to {stop}")
        if self.context.scratch < 0 or (start == 0 and stop == s.n_past):
            return self.context.state(s.seq_id, s.n_past)
        return self.context.save_part(s.seq_id, start, stop)

    def remove(self, Sequence sequence not None):
        """Stop running a sequence and free its memory. It can be added again: nothing but time is lost."""
        cdef sequence_t *s = &sequence.state
        self.running.remove(sequence)
        running_remove(&self.live, s)
        llama_memory_seq_rm(self.context.memory, s.seq_id, -1, -1)
        self._let_go(sequence)
        s.n_past = s.n_restore = 0

    def halt(self, Sequence sequence not None):
        """Give a running sequence no more rows; it counts as finished and nothing is reported."""
        if sequence.state.finish == FINISH_NONE:
            sequence.state.finish = FINISH_HALTED

    def clear(self):
        """Stop running every sequence and empty the memory."""
        cdef Sequence sequence
        running_clear(&self.live)
        for sequence in self.running:
            self._let_go(sequence)
        self.running.clear()

    cdef void _let_go(self, Sequence sequence):
        self.free_seq_ids.append(sequence.state.seq_id)
        sequence.state.seq_id = -1
        if sequence.constraint is not None:
            sequence.constraint.state.parked = False
            self.masker.hold(sequence.constraint)

    def finished(self):
        """The running sequences that have finished; they keep their memory until they are removed."""
        cdef Sequence sequence
        return [sequence for sequence in self.running if sequence.state.finish != FINISH_NONE]

    def save_due(self):
        """The running sequences that have reached their ``save_at``."""
        cdef Sequence sequence
        return [
            sequence for sequence in self.running
            if sequence.state.n_past >= sequence.state.save_at and sequence.state.finish == FINISH_NONE
        ]

    def in_last_step(self):
        """The running sequences that had rows in the last step: the ones a failure of it concerns."""
        cdef Sequence sequence
        return [sequence for sequence in self.running if sequence.state.n_rows > 0]

    def interrupt(self):
        """Make ``run`` return after the current step. Any thread."""
        flag_store(&self.attention, 1)

    def run(self, int max_steps):
        """Step until PAUSED (``interrupt``, ``max_steps`` or nobody has a row to compute), FINISHED (somebody just
        has), SAVE_DUE, PREFILLED, NO_ROOM or a failure (llama_decode's code).
        """
        cdef int status = RUN_PAUSED
        cdef int step = 0
        cdef int32_t n_generating
        with nogil:
            while status == RUN_PAUSED and step < max_steps and not flag_load(&self.attention):
                status = runner_prefill(self)
                if status != RUN_PAUSED:
                    break
                n_generating = batching_fill(&self.batching, &self.live, &self.batch.batch)
                if self.batch.batch.n_tokens:
                    status = runner_step(self, n_generating)
                elif anybody_parked(self):
                    masker_wait(self.masker, MASK_SECONDS)
                    status = runner_publish(self, now())
                elif self.prefiller is not None and self.prefiller.turn.working:
                    self.spare = SLICE_SECONDS
                else:
                    break
                step += 1
        flag_store(&self.attention, 0)
        return status

    def since_last_step(self):
        """Seconds since the last step finished. Any thread."""
        return now() - self.counters.last_step

    def histograms(self):
        """The distributions since the start: (upper bounds, counts between them, sum) by name. Any thread."""
        return histograms_read(&self.observed)

    def counts(self):
        """Everything counted since the start, as a dict. Any thread; never waits for a step."""
        return self.counters | {
            "finished_stop": self.observed.finished[FINISH_STOP],
            "finished_length": self.observed.finished[FINISH_LENGTH],
            "prefix_queries": self.live.queries, "prefix_hits": self.live.hits + self.live.restored,
            "prefix_hits_running": self.live.hits, "prefix_hits_ram": self.live.restored, "forks": self.live.forks,
        }


cdef void note_cached(Runner self, sequence_t *s, int32_t n) noexcept nogil:
    """Count tokens that a sequence did not have to compute; only the first time it runs."""
    if s.n_runs == 1:
        s.n_cached += n
        self.live.restored += n


cdef int runner_prefill(Runner self) noexcept nogil:
    """Give the Prefiller what the last step left of its time."""
    cdef int32_t n_rows
    if self.prefiller is None or not self.prefiller.turn.working or self.spare <= 0:
        return RUN_PAUSED
    self.spare -= prefiller_slice(self.prefiller, self.spare)
    self.counters.last_step = now()
    if self.prefiller.turn.working:
        return RUN_PAUSED
    if self.prefiller.code == 0:
        n_rows = self.prefiller.batch.batch.n_tokens
        self.counters.prompt_tokens += n_rows
        runner_count(self, n_rows, self.prefiller.seconds, self.prefiller.seconds)
        self.counters.prompt_seconds += self.prefiller.seconds
    return RUN_PREFILLED


cdef void runner_count(Runner self, int32_t n_rows, double decode_seconds, double step_seconds) noexcept nogil:
    """Count a step, ``decode_seconds`` of which llama_decode took."""
    cdef counters_t *count = &self.counters
    count.steps += 1
    count.rows += n_rows
    count.rows_max = max(count.rows_max, n_rows)
    count.decode_seconds += decode_seconds
    count.step_seconds += step_seconds
    observe_step(&self.observed, step_seconds, n_rows)


cdef int runner_step(Runner self, int32_t n_decode) noexcept nogil:
    """Decode the batch, ``n_decode`` of whose rows continue a generation; RUN_PAUSED when there may be another step."""
    cdef int32_t i, n_rows, n_sequences
    cdef bint save_due = False
    cdef int code
    cdef double start, decoded, sampled, oldest
    cdef counters_t *count = &self.counters
    cdef sequence_t *s
    n_rows = self.batch.batch.n_tokens
    start = now()
    code = llama_decode(self.context.ctx, self.batch.batch)
    if code != 0:
        count.last_step = now()
        return code
    n_sequences = 0
    oldest = start
    for i in range(self.live.n):
        s = self.live.states[i]
        s.n_past += s.n_rows
        n_sequences += s.n_rows > 0
        if s.first_token:
            oldest = min(oldest, s.first_token)
        save_due = save_due or s.n_past >= s.save_at
    # the first row waits until the device is done
    for i in range(self.live.n):
        if self.live.states[i].output_row >= 0:
            llama_get_logits_ith(self.context.ctx, self.live.states[i].output_row)
            break
    decoded = now()
    await_masks(self, decoded - start)
    code = runner_publish(self, decoded)
    sampled = count.last_step
    self.spare = batching_spare(&self.batching, sampled - start, n_decode, self.live.n - n_sequences, start - oldest)
    cost_add(&self.batching.cost, n_rows, decoded - start)
    runner_count(self, n_rows, decoded - start, sampled - start)
    count.sequences += n_sequences
    count.prompt_tokens += n_rows - n_decode
    count.prompt_seconds += (decoded - start) * (n_rows - n_decode) / n_rows
    count.generated_seconds += (decoded - start) * n_decode / n_rows
    count.sample_seconds += sampled - decoded
    return RUN_SAVE_DUE if save_due and code == RUN_PAUSED else code


cdef int runner_publish(Runner self, double decoded) noexcept nogil:
    """Choose tokens and hand over what became text: RUN_PAUSED, RUN_FINISHED or a failure."""
    cdef int code = runner_sample(self, decoded)
    if outbox_publish(self.outbox) < 0:
        code = RUN_NO_MEMORY
    self.counters.last_step = now()
    return code


cdef bint anybody_parked(Runner self) noexcept nogil:
    cdef int32_t i
    for i in range(self.live.n):
        if is_parked(self.live.states[i]):
            return True
    return False


cdef bint is_parked(const sequence_t *s) noexcept nogil:
    """Whether its logits wait for a mask."""
    return s.constraint != NULL and s.constraint.parked and s.finish == FINISH_NONE


cdef void await_masks(Runner self, double decode_seconds) noexcept nogil:
    """Give the masks of this step's rows a little time, those of slow grammars only where nobody could go on."""
    cdef int32_t i, n_late = 0, n_slow = 0, n_outputs = 0
    cdef sequence_t *s
    for i in range(self.live.n):
        s = self.live.states[i]
        n_outputs += s.output_row >= 0
        if s.output_row >= 0 and s.constraint != NULL and not constraint_ready(s.constraint):
            n_late += 1
            n_slow += s.constraint.lane
    if n_late and n_late == n_outputs:
        masker_wait(self.masker, MASK_SECONDS)
    elif n_late > n_slow:
        masker_wait(self.masker, MASK_PATIENCE * decode_seconds)


cdef int runner_sample(Runner self, double decoded) noexcept nogil:
    """Choose a token for every row of logits and stage what became text: RUN_PAUSED, RUN_FINISHED or a failure."""
    cdef int status = RUN_PAUSED, code
    cdef int32_t i
    cdef sequence_t *s
    cdef float *logits
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.n_rows and s.logprobs.n_scored < s.n_prompt and chooser_score(self.chooser, s) < 0:
            return RUN_NO_MEMORY
        if is_parked(s):
            logits = s.constraint.row
        elif s.output_row >= 0:
            logits = llama_get_logits_ith(self.context.ctx, s.output_row)
            if logits == NULL:
                return -1
        else:
            continue
        code = runner_choose(self, s, logits, decoded)
        if code == RUN_NO_MEMORY:
            return code
        status = max(status, code)
    return status


cdef int runner_choose(Runner self, sequence_t *s, float *logits, double decoded) noexcept nogil:
    """A sequence's next token, or several, and what became text, staged: RUN_PAUSED, RUN_FINISHED or RUN_NO_MEMORY."""
    cdef int32_t n_before = s.n_tokens
    if chooser_next(self.chooser, s, logits) < 0:
        return RUN_NO_MEMORY
    if s.n_tokens > n_before:
        self.counters.generated_tokens += s.n_tokens - n_before
        observe_token(&self.observed, s, decoded)
        if s.n_tokens // BLOCK > n_before // BLOCK:
            running_note(&self.live, s)
    return RUN_PAUSED if s.finish == FINISH_NONE else RUN_FINISHED
