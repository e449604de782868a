"""Who runs: sequences that come, take their ids and their memory, and leave; and the loop of steps over them.

``Runner.run`` steps without the GIL until Python has something to decide: a sequence finished, somebody called
``interrupt``, or llama_decode refused.
"""
from libc.stdint cimport int32_t, int64_t

from .context cimport Context
from .cost cimport cost_fit
from .headers.clock cimport now
from .headers.llama cimport LLAMA_MAX_SEQ, llama_memory_seq_pos_max, llama_memory_seq_rm
from .histograms cimport histograms_read
from .live cimport loan_t, live_add, live_clear, live_goals, live_loan, live_remove
from .masks cimport MASK_NONE, masker_ask
from .outbox cimport Outbox, outbox_publish
from .prefiller cimport Prefiller, prefiller_logits
from .sequence cimport (
    FINISH_HALTED, FINISH_LENGTH, FINISH_NONE, FINISH_STOP, Sequence, sequence_schedule, sequence_t,
)
from .step cimport IDLE, NO_MEMORY, PAUSED, Step, step_choose, step_prefill, step_take
from .vocab cimport Vocab


cdef extern from *:
    """
    static inline int flag_load(int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
    static inline void flag_store(int *flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
    """
    int flag_load(int *flag) noexcept nogil
    void flag_store(int *flag, int value) noexcept nogil


cdef class Runner:
    """Runs up to ``context.n_seq_max`` Sequences in one Context. ``interrupt``, ``counts``, ``histograms`` and
    ``since_last_step`` may be called by any thread, all other methods belong to the engine thread.

    ``target_itl``: how many seconds a step that also decodes may take, as far as its prompt rows decide that; 0:
    GAP_STRETCH times what it would take without them, or GAP_SECONDS. ``prefill_chunk``: most prompt rows of such a
    step, whatever they take; 0 leaves it to the time. What the ``prefiller`` has to compute gets slices between steps,
    within the same time.
    """

    def __cinit__(self, Context context not None, Vocab vocab not None, Outbox outbox not None, *,
                  int32_t prefill_chunk=0, double target_itl=0, Prefiller prefiller=None):
        self.step = Step(context, vocab, outbox, prefill_chunk, target_itl, prefiller)
        self.live = &self.step.live
        self.running = []
        # without a memory nobody can run
        n_seq_max = min(context.n_seq_max, LLAMA_MAX_SEQ) if context.memory != NULL else 0
        self.free_seq_ids = list(reversed(range(n_seq_max)))

    def interrupt(self):
        """Make ``run`` return after the current step. Any thread."""
        flag_store(&self.attention, 1)

    def run(self, int max_steps):
        """Step until PAUSED (``interrupt``, ``max_steps`` or nobody has a row to compute), FINISHED (somebody just
        has), SAVE_DUE, PREFILLED, NO_ROOM or a failure (llama_decode's code).
        """
        cdef int status = PAUSED
        cdef int n_steps = 0
        with nogil:
            while status == PAUSED and n_steps < max_steps and not flag_load(&self.attention):
                status = step_prefill(self.step)
                if status == PAUSED:
                    status = step_take(self.step)
                n_steps += 1
        flag_store(&self.attention, 0)
        return PAUSED if status == IDLE else status

    @property
    def masker(self):
        return self.step.masker

    @property
    def spare(self):
        """Seconds that others may compute before the next step."""
        return self.step.spare

    @spare.setter
    def spare(self, double seconds):
        self.step.spare = seconds

    def since_last_step(self):
        """Seconds since the last step finished. Any thread."""
        return now() - self.step.counters.last_step

    def histograms(self):
        """The distributions since the start: (upper bounds, counts between them, sum) by name. Any thread."""
        return histograms_read(&self.step.observed)

    def counts(self):
        """Everything counted since the start, as a dict. Any thread; never waits for a step."""
        cdef live_t *live = self.live
        return self.step.counters | {
            "finished_stop": self.step.observed.finished[FINISH_STOP],
            "finished_length": self.step.observed.finished[FINISH_LENGTH],
            "prefix_queries": live.queries, "prefix_hits": live.hits + live.restored,
            "prefix_hits_running": live.hits, "prefix_hits_ram": live.restored, "forks": live.forks,
        }

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
        return self.step.context.n_ctx

    def shareable(self, Sequence sequence not None):
        """How many of its tokens a waiting sequence would get from a running one, and how many of those are there
        already: the others it would wait for."""
        cdef loan_t loan = live_loan(self.live, &sequence.state)
        return loan.n_shared, loan.n_there

    def awaited(self, Sequence sequence not None):
        """The least number of a running sequence's tokens, more than it has in memory, that somebody waits for; all it
        has where nobody does."""
        live_goals(self.live)
        return sequence.state.goal

    def followers(self, Sequence sequence not None):
        """The running sequences that wait for a prefix of this one, or of one that does, in order of admission."""
        cdef Sequence other
        cdef set seq_ids = {sequence.state.seq_id}
        cdef list found = []
        for other in self.running:
            # nobody waits for one that was admitted later
            if other.state.leader >= 0 and other.state.leader in seq_ids:
                seq_ids.add(other.state.seq_id)
                found.append(other)
        return found

    def leader(self, Sequence sequence not None):
        """The running sequence whose prefix this one waits for; None where it waits for nobody."""
        cdef Sequence other
        for other in self.running:
            if other.state.seq_id == sequence.state.leader:
                return other
        return None

    def withdraw(self, Sequence sequence not None):
        """``remove`` a sequence that has had no row yet, as if it had never been added."""
        cdef sequence_t *s = &sequence.state
        if s.n_runs == 1 and s.n_tokens == s.n_prompt:
            s.n_runs = 0
            self.live.queries -= s.n_prompt
            self.live.hits -= s.n_lent
            self.live.restored -= s.n_cached - s.n_lent
            s.n_cached = s.n_lent = 0
        self.remove(sequence)

    @property
    def least_wait(self):
        """Fewer tokens that the Prefiller is to compute nobody waits for."""
        return self.live.least_wait

    @least_wait.setter
    def least_wait(self, int32_t n_tokens):
        self.live.least_wait = n_tokens

    @property
    def in_parts(self):
        """Whether a state can be saved and restored in parts; where not, every part begins at 0."""
        return self.step.context.scratch >= 0

    @property
    def n_cuttable(self):
        """A sequence of up to so many tokens can be cut anywhere, a longer one not at all."""
        return self.step.context.n_cuttable

    @property
    def row_seconds(self):
        """What one more row adds to a step, by the recent ones; 0 before the first."""
        cdef double fixed, per_row
        if self.step.pace.cost.rows == 0:
            return 0.0
        cost_fit(&self.step.pace.cost, &fixed, &per_row)
        return per_row

    def add(self, Sequence sequence not None, int32_t n_found=0, bint apart=False):
        """Let a sequence run. What another running sequence has computed of its tokens, or is about to, is shared.

        It waits until ``restore`` has brought its first ``n_found`` tokens (fewer than it has), or has failed to; if
        its prompt is computed ``apart``, until ``prefilled`` and all but the last. Raises IndexError where there is no
        free sequence id.
        """
        cdef sequence_t *s = &sequence.state
        if s.seq_id >= 0 or s.finish != FINISH_NONE:
            raise ValueError("the sequence runs already or has finished")
        if not 0 <= n_found < s.n_tokens:
            raise ValueError(f"{n_found} tokens to restore for a sequence of {s.n_tokens}")
        if s.constraint != NULL and s.constraint.state == MASK_NONE:
            if masker_ask(self.step.masker, s.constraint, -1) < 0:
                raise MemoryError
        s.seq_id = self.free_seq_ids.pop()
        s.n_rows = 0
        s.n_past = 0
        s.n_found = n_found
        s.n_restore = s.n_tokens - 1 if apart else n_found
        s.apart = apart
        self.running.append(sequence)
        live_add(self.live, s)

    def prefilled(self, Sequence sequence not None, int32_t n_restore, int32_t row=-1):
        """Tell a running sequence that the Prefiller is done with it and has computed its first ``n_restore`` tokens.

        It now waits until these are restored. They may be fewer than it has; where they are all, ``row`` of the
        Prefiller's last batch gives its next token.
        """
        cdef sequence_t *s = &sequence.state
        cdef float *logits = NULL
        cdef int status
        if s.seq_id < 0 or not s.n_past <= n_restore <= (s.n_restore if row < 0 else s.n_tokens):
            raise ValueError(f"{n_restore} instead of {s.n_restore} tokens to restore")
        if row >= 0:
            logits = prefiller_logits(self.step.prefiller, row)
            if n_restore != s.n_tokens or logits == NULL:
                raise ValueError(f"row {row} for {n_restore} of {s.n_tokens} tokens")
        s.n_restore = n_restore
        s.apart = False
        if row < 0 or s.finish != FINISH_NONE:
            return
        # the record of its first token tells what was cached
        note_cached(self, s, s.n_found - min(s.n_past, s.n_found))
        s.n_found = 0
        with nogil:
            sequence_schedule(s, now())
            status = step_choose(self.step, s, logits, now())
            if outbox_publish(self.step.outbox) < 0:
                status = NO_MEMORY
        if status == NO_MEMORY:
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
        sequence_schedule(s, now())
        if self.step.context.scratch >= 0:
            if start != s.n_past:
                raise ValueError(f"tokens from {start} on after {s.n_past}")
            done = self.step.context.restore_part(seq_id, saved, start, stop)
            if not done:
                # it is computed here
                s.n_restore = s.n_past
                s.apart = False
        else:
            done = self.step.context.set_state(seq_id, saved)
            done = done and llama_memory_seq_rm(self.step.context.memory, seq_id, stop, -1)
            done = done and llama_memory_seq_pos_max(self.step.context.memory, seq_id) == stop - 1
            if not done:
                s.n_past = s.n_restore = 0
        if done:
            s.n_past = stop
        else:
            llama_memory_seq_rm(self.step.context.memory, seq_id, s.n_past, -1)
        note_cached(self, s, min(s.n_past, s.n_found) - min(before, s.n_found))
        return done

    def save(self, Sequence sequence not None, int32_t start, int32_t stop):
        """The state of a running sequence's tokens [start, stop) as bytes.

        Without ``in_parts`` it is everything; ``stop`` must be ``n_past`` then, and wherever it cannot be cut.
        """
        cdef sequence_t *s = &sequence.state
        if s.seq_id < 0 or not 0 <= start < stop <= s.n_past:
            raise ValueError(f"tokens {start} to {stop} of {s.n_past} in memory")
        if stop < s.n_past and (self.step.context.scratch < 0 or s.n_past > self.step.context.n_cuttable):
            raise ValueError(f"a state of {s.n_past} tokens cannot be cut to {stop}")
        if self.step.context.scratch < 0 or (start == 0 and stop == s.n_past):
            return self.step.context.state(s.seq_id, s.n_past)
        return self.step.context.save_part(s.seq_id, start, stop)

    def remove(self, Sequence sequence not None):
        """Stop running a sequence and free its memory. It can be added again: nothing but time is lost."""
        cdef sequence_t *s = &sequence.state
        self.running.remove(sequence)
        live_remove(self.live, s)
        llama_memory_seq_rm(self.step.context.memory, s.seq_id, -1, -1)
        self._let_go(sequence)
        s.n_past = s.n_restore = 0
        s.apart = False

    def halt(self, Sequence sequence not None):
        """Give a running sequence no more rows; it counts as finished and nothing is reported."""
        if sequence.state.finish == FINISH_NONE:
            sequence.state.finish = FINISH_HALTED

    def clear(self):
        """Stop running every sequence and empty the memory."""
        cdef Sequence sequence
        live_clear(self.live)
        for sequence in self.running:
            self._let_go(sequence)
        self.running.clear()

    cdef void _let_go(self, Sequence sequence):
        self.free_seq_ids.append(sequence.state.seq_id)
        sequence.state.seq_id = -1
        if sequence.constraint is not None:
            sequence.constraint.state.parked = False
            self.step.masker.hold(sequence.constraint)

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


cdef void note_cached(Runner self, sequence_t *s, int32_t n) noexcept nogil:
    """Count tokens that a sequence did not have to compute; only the first time it runs."""
    if s.n_runs == 1:
        s.n_cached += n
        self.live.restored += n
