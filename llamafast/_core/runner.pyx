"""Who runs: sequences that come, take their ids and their memory, and leave."""
from libc.stdint cimport int32_t, int64_t

from .constraint cimport MASK_NONE, masker_ask
from .context cimport Context
from .cost cimport cost_fit
from .headers.clock cimport now
from .headers.llama cimport llama_memory_seq_pos_max, llama_memory_seq_rm
from .outbox cimport outbox_publish
from .prefiller cimport prefiller_logits
from .running cimport MAX_RUNNING, loan_t, running_add, running_clear, running_goals, running_loan, running_remove
from .sequence cimport FINISH_HALTED, FINISH_NONE, Sequence, sequence_schedule, sequence_t
from .stepper cimport RUN_NO_MEMORY, Stepper, stepper_choose


cdef class Runner(Stepper):
    """Runs up to ``context.n_seq_max`` Sequences in one Context. All methods but a Stepper's thread-safe ones belong to
    the engine thread.

    ``target_itl``: how many seconds a step that also decodes may take, as far as its prompt rows decide that; 0:
    GAP_STRETCH times what it would take without them, or GAP_SECONDS. ``prefill_chunk``: most prompt rows of such a
    step, whatever they take; 0 leaves it to the time. What the ``prefiller`` has to compute gets slices between steps,
    within the same time.
    """

    def __cinit__(self, Context context not None, *_, **__):
        self.running = []
        # without a memory nobody can run
        self.free_seq_ids = list(reversed(range(min(context.n_seq_max, MAX_RUNNING)))) if context.memory != NULL else []

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
        """How many of its tokens a waiting sequence would get from a running one, and how many of those are there
        already: the others it would wait for."""
        cdef loan_t loan = running_loan(&self.live, &sequence.state)
        return loan.n_shared, loan.n_there

    def awaited(self, Sequence sequence not None):
        """The least number of a running sequence's tokens, more than it has in memory, that somebody waits for; all it
        has where nobody does."""
        running_goals(&self.live)
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
        if s.constraint != NULL and s.constraint.state == MASK_NONE and masker_ask(self.masker, s.constraint, -1) < 0:
            raise MemoryError
        s.seq_id = self.free_seq_ids.pop()
        s.n_rows = 0
        s.n_past = 0
        s.n_found = n_found
        s.n_restore = s.n_tokens - 1 if apart else n_found
        s.apart = apart
        self.running.append(sequence)
        running_add(&self.live, s)

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
            logits = prefiller_logits(self.prefiller, row)
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
            status = stepper_choose(self, s, logits, now())
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
        sequence_schedule(s, now())
        if self.context.scratch >= 0:
            if start != s.n_past:
                raise ValueError(f"tokens from {start} on after {s.n_past}")
            done = self.context.restore_part(seq_id, saved, start, stop)
            if not done:
                # it is computed here
                s.n_restore = s.n_past
                s.apart = False
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
        s.apart = False

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


cdef void note_cached(Runner self, sequence_t *s, int32_t n) noexcept nogil:
    """Count tokens that a sequence did not have to compute; only the first time it runs."""
    if s.n_runs == 1:
        s.n_cached += n
        self.live.restored += n
