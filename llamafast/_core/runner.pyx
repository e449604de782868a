"""Who runs: sequences that come, take their ids and their memory, and leave; and the loop of steps over them.

``Runner.run`` steps without the GIL until Python has something to decide: a sequence finished, somebody called
``interrupt``, or llama_decode refused.
"""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

from .constraint cimport MASK_NONE
from .context cimport Context
from .cost cimport cost_fit
from .drafter cimport Drafter
from .glance cimport glance_sequences, glance_steps
from .headers.atomic cimport shared_load, shared_store
from .headers.clock cimport now
from .headers.llama cimport LLAMA_MAX_SEQ, llama_memory_seq_pos_max, llama_memory_seq_rm
from .histograms cimport histograms_read
from .laws cimport broken_law
from .leaks cimport LLAMAFAST_DEBUG
from .live cimport live_add, live_clear, live_loan, live_remove, live_restore, loan_t
from .masks cimport masker_ask
from .outbox cimport Outbox
from .output cimport output_halt
from .rows cimport rows_none
from .sequence cimport (
    FINISH_LENGTH, FINISH_REFUSED, FINISH_STOP, PHASE_ENDED, PHASE_WAITING, Sequence, sequence_end,
    sequence_position, sequence_schedule, sequence_t,
)
from .step cimport FINISHED, IDLE, PAUSED, Step, step_take
from .vocab cimport Vocab


# no_gc_clear: who still runs is let go of at the very end
@cython.no_gc_clear
cdef class Runner:
    """Runs up to ``context.n_seq_max`` Sequences in one Context. ``interrupt``, ``counts``, ``histograms`` and
    ``since_last_step`` may be called by any thread, all other methods belong to the engine thread.

    ``pace`` has a value for each name of ``pace_t``: ValueError for one it lacks. With a ``drafter``, of the same
    context, steps verify what it drafts.
    """

    def __cinit__(
        self, Context context not None, Vocab vocab not None, Outbox outbox not None, *, pace, Drafter drafter=None
    ):
        self.step = Step(context, vocab, outbox, pace, drafter)
        self.live = &self.step.live

    def __dealloc__(self):
        cdef int32_t i
        # nothing else: the collector may have cleared what the step works with
        if self.live != NULL:
            for i in range(self.live.n):
                Py_DECREF(<Sequence> self.live.states[i].owner)

    def interrupt(self):
        """Make ``run`` return after the current step. Any thread."""
        shared_store(&self.attention, 1)

    def run(self, int max_steps):
        """Step until PAUSED (``interrupt``, ``max_steps`` or nobody has a row to compute), FINISHED (somebody just
        has), SAVE_DUE, NO_ROOM or a failure (llama_decode's code).
        """
        cdef int status = PAUSED
        cdef int n_steps = 0
        with nogil:
            while status == PAUSED and n_steps < max_steps and not shared_load(&self.attention):
                status = step_take(self.step)
                n_steps += 1
        shared_store(&self.attention, 0)
        if LLAMAFAST_DEBUG and (status == PAUSED or status >= FINISHED):
            self.check()
        self.idled = status == IDLE
        return PAUSED if status == IDLE else status

    @property
    def masker(self):
        return self.step.masker

    @property
    def spare(self):
        """Seconds that others may compute or copy before the next step."""
        return self.step.spare

    @property
    def row_seconds(self):
        """What a row of a step takes, about; 0 before the first one."""
        cdef double fixed, per_row
        if self.step.quota.cost.rows == 0:
            return 0.0
        cost_fit(&self.step.quota.cost, &fixed, &per_row)
        return per_row

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
            "finished_refused": self.step.observed.finished[FINISH_REFUSED],
            "prefix_queries": live.queries, "prefix_hits": live.hits + live.restored,
            "prefix_hits_running": live.hits, "prefix_hits_ram": live.restored, "forks": live.forks,
        } | (self.step.drafter.counts() if self.step.drafter is not None else {})

    def last_steps(self, int32_t most, int32_t most_parts):
        """How many steps there have been, and of the last ``most`` of them, fewer where these have more than
        ``most_parts`` parts, oldest first: seconds, and as parts who had rows: (sequence id, tag, kind, rows, drafted
        ones). Any thread; never waits for a step."""
        return glance_steps(&self.step.glance, most, most_parts)

    def sequences(self):
        """How far those are who run, as ``glance.glance_sequences`` has it. Any thread; never waits for a step."""
        return glance_sequences(self.live)

    @property
    def n_running(self):
        return self.live.n

    @property
    def n_free(self):
        """Sequence ids nobody has."""
        return self.live.n_free

    @property
    def n_cells(self):
        """Positions in memory; one that several sequences share counts for each."""
        cdef int64_t cells = 0
        cdef int32_t i
        for i in range(self.live.n):
            cells += self.live.states[i].tokens.n_past
        return cells

    @property
    def total_cells(self):
        return self.step.context.n_ctx

    def shareable(self, Sequence sequence not None):
        """How many of its tokens a waiting sequence would get from a running one, and how many of those are there
        already: the others it would wait for."""
        cdef loan_t loan = live_loan(self.live, &sequence.state)
        return loan.n_shared, loan.n_there

    @property
    def in_parts(self):
        """Whether a state can be saved and restored in parts; where not, every part begins at 0."""
        return self.step.context.scratch >= 0

    @property
    def n_cuttable(self):
        """A sequence of up to so many tokens can be cut anywhere, a longer one not at all."""
        return self.step.context.n_cuttable

    def add(self, Sequence sequence not None, int32_t n_found=0):
        """Let a sequence run. What another running sequence has computed of its tokens, or is about to, is shared.

        It waits until ``restore`` has brought its first ``n_found`` tokens (fewer than it has), or has failed to.
        Raises IndexError where there is no free sequence id.
        """
        cdef sequence_t *s = &sequence.state
        if s.phase != PHASE_WAITING:
            raise ValueError("the sequence runs already or has finished")
        if not 0 <= n_found < s.tokens.n_certain:
            raise ValueError(f"{n_found} tokens to restore for a sequence of {s.tokens.n_certain}")
        if not self.live.n_free:
            raise IndexError("all sequence ids are taken")
        if s.out.constraint != NULL and s.out.constraint.state == MASK_NONE:
            if masker_ask(self.step.masker, s.out.constraint, -1, False) < 0:
                raise MemoryError
        rows_none(s)
        if not self.live.n:
            self.step.told = 0
        Py_INCREF(sequence)
        live_add(self.live, s, n_found)

    def forgo(self, Sequence sequence not None):
        """What is still to be restored of a running sequence is not to be had: it computes that itself."""
        if sequence.state.seq_id < 0:
            raise ValueError("the sequence does not run")
        live_restore(self.live, &sequence.state, sequence.state.tokens.n_past, False)

    def restore(self, Sequence sequence not None, const uint8_t[::1] saved not None, int32_t start, int32_t stop):
        """Give a running sequence its tokens [start, stop) out of what ``save`` gave for the same tokens.

        ``start`` is where its memory ends; without ``in_parts`` it does not count, for ``saved`` is everything up to
        its end. Returns False where llama.cpp does not take it; then the rest is computed.
        """
        cdef sequence_t *s = &sequence.state
        cdef int32_t n_past = s.tokens.n_past, seq_id = s.seq_id
        cdef int32_t end = sequence_position(s, stop), last = sequence_end(s, stop) - 1
        cdef bint done
        if seq_id < 0 or not start < stop <= s.share.n_restore:
            raise ValueError(f"tokens {start} to {stop} of {s.share.n_restore} to restore")
        sequence_schedule(s, now())
        if self.step.context.scratch >= 0:
            if start != n_past:
                raise ValueError(f"tokens from {start} on after {n_past}")
            done = self.step.context.restore_part(seq_id, saved, sequence_position(s, start), end)
            done = done and llama_memory_seq_pos_max(self.step.context.memory, seq_id) == last
        else:
            done = self.step.context.set_state(seq_id, saved)
            done = done and llama_memory_seq_rm(self.step.context.memory, seq_id, end, -1)
            done = done and llama_memory_seq_pos_max(self.step.context.memory, seq_id) == last
            n_past = 0
        live_restore(self.live, s, stop if done else n_past, done)
        return done

    def give_rows(self, Sequence sequence not None, int32_t i, const float[::1] rows not None):
        """Let span ``i`` of a sequence be computed from ``rows`` (n_rows, width), which are held until it has been, or
        the sequence is gone. Raises ValueError where they are not as many as that."""
        cdef sequence_t *s = &sequence.state
        cdef Py_ssize_t width = self.step.media.width
        if not 0 <= i < s.tokens.n_spans or rows.shape[0] != s.tokens.spans[i].n_rows * width:
            raise ValueError(f"{rows.shape[0]} floats for span {i} of {s.tokens.n_spans}")
        if not s.tokens.spans[i].causal and s.tokens.spans[i].n_rows > self.step.media.n_ubatch:
            raise ValueError(f"{s.tokens.spans[i].n_rows} rows at one go, of {self.step.media.n_ubatch}")
        sequence.spans[i][1] = rows
        s.tokens.spans[i].rows = &rows[0]

    def save(self, Sequence sequence not None, int32_t start, int32_t stop):
        """The state of a running sequence's tokens [start, stop) as bytes.

        Without ``in_parts`` it is everything; ``stop`` must be ``n_past`` then, and wherever it cannot be cut.
        """
        cdef sequence_t *s = &sequence.state
        if s.seq_id < 0 or not 0 <= start < stop <= s.tokens.n_past:
            raise ValueError(f"tokens {start} to {stop} of {s.tokens.n_past} in memory")
        if stop < s.tokens.n_past and (self.step.context.scratch < 0 or s.tokens.n_past > self.step.context.n_cuttable):
            raise ValueError(f"a state of {s.tokens.n_past} tokens cannot be cut to {stop}")
        if self.step.context.scratch < 0 or (start == 0 and stop == s.tokens.n_past):
            return self.step.context.state(s.seq_id, s.tokens.n_past)
        return self.step.context.save_part(
            s.seq_id, sequence_position(s, start), sequence_position(s, stop), stop - start, s.rolled_back)

    def remove(self, Sequence sequence not None):
        """Stop running a sequence and free its memory. It can be added again: nothing but time is lost."""
        if sequence.state.seq_id < 0:
            raise ValueError("the sequence does not run")
        live_remove(self.live, &sequence.state)
        let_go(self, &sequence.state)

    def forget_answers(self):
        """Draft nothing any more of what finished sequences were answered."""
        if self.step.drafter is not None:
            self.step.drafter.forget_answers()

    def halt(self, Sequence sequence not None):
        """Give a running sequence no more rows; it counts as finished and nothing is reported."""
        output_halt(&sequence.state)

    def clear(self):
        """Stop running every sequence and empty the memory."""
        cdef sequence_t *states[LLAMA_MAX_SEQ]
        cdef int32_t i, n = self.live.n
        memcpy(states, self.live.states, <size_t> n * sizeof(sequence_t *))
        live_clear(self.live)
        for i in range(n):
            let_go(self, states[i])

    def finished(self):
        """The running sequences that have finished; they keep their memory until they are removed."""
        cdef int32_t i
        return [
            <Sequence> self.live.states[i].owner for i in range(self.live.n)
            if self.live.states[i].phase == PHASE_ENDED
        ]

    def save_due(self):
        """The running sequences that have reached their ``save_at``."""
        cdef int32_t i
        return [
            <Sequence> self.live.states[i].owner for i in range(self.live.n)
            if self.live.states[i].tokens.n_past >= self.live.states[i].tokens.save_at
            and self.live.states[i].phase != PHASE_ENDED
        ]

    def in_last_step(self):
        """The running sequences that had rows in the last step: the ones a failure of it concerns."""
        cdef int32_t i
        return [<Sequence> self.live.states[i].owner for i in range(self.live.n) if self.live.states[i].rows.n > 0]

    def check(self):
        """Between two steps that did not fail: raises AssertionError where the lists of who runs disagree or a sequence
        has broken a law. Debug builds do so after every ``run``."""
        cdef str fault = broken_law(self.live)
        if fault is not None:
            raise AssertionError(fault)


cdef void let_go(Runner self, sequence_t *s) noexcept:
    """Hold no more a sequence that was taken out."""
    cdef Sequence sequence = <Sequence> s.owner
    if sequence.constraint is not None:
        self.step.masker.hold(sequence.constraint)
    Py_DECREF(sequence)
