"""Drafts of a model that computes beside the one that is served: who is asked is computed in one batch for each token.

Two kinds drive their memory in their own ways: a head of the model's (nextn.pyx), which takes hidden rows, and a small
model of the same vocabulary (draft_model.pyx), which needs all tokens before. What a call is, what it takes, and what
becomes of one that fails is the same for both.
"""
cimport cython
from libc.math cimport expf
from libc.stdint cimport int32_t

from .headers.clock cimport now, thread_now
from .headers.llama cimport (
    LLAMA_MAX_SEQ, llama_batch_free, llama_get_logits_ith, llama_memory_clear, llama_synchronize,
)
from .live cimport live_t
from .sequence cimport sequence_t

import logging

logger = logging.getLogger(__name__)

# Weight of a new call in what calls take.
cdef double FRESH = 0.1
# Rows without logits whose time is measured.
cdef enum:
    TIMED_ROWS = 32
    TIMED_OUTPUTS = 8
    ROUNDS = 3


# no_gc_clear: to free it may take the context that it drafts for
@cython.no_gc_clear
cdef class Proposer:
    """What both kinds have: neither is made by itself. The thread that steps calls it, but for ``counts``."""

    def __dealloc__(self):
        llama_batch_free(self.batch)

    def time_calls(self, double seconds):
        """Measure what a call takes, for about so long; a dear model is measured once. Nothing may run; RuntimeError
        where one fails."""
        cdef int32_t n_outputs = min(self.n_seq_max, TIMED_OUTPUTS), n_rows = min(self.capacity, TIMED_ROWS)
        cdef double one, several, rows, until = now() + seconds
        one = several = rows = 0
        for again in range(ROUNDS):
            # the first call of a size has a graph to make
            one = fastest(self, 1, 1, one)
            several = fastest(self, n_outputs, n_outputs, several)
            rows = fastest(self, n_rows, 1, rows)
            if again and now() > until:
                break
        self.forget()
        self.per_row = max(0.0, several - one) / (n_outputs - 1) if n_outputs > 1 else 0.0
        self.per_fed = max(0.0, rows - one) / (n_rows - 1) if n_rows > 1 else one
        self.per_row = max(self.per_row, self.per_fed)
        self.fixed = max(0.0, one - self.per_row)

    def counts(self):
        """Calls, rows of them, and calls that failed. Any thread."""
        return {"calls": self.calls, "rows": self.rows_fed, "failures": self.failures}

    cdef int32_t behind(self, const sequence_t *s) noexcept nogil:
        """How many of a sequence's rows its memory lacks, the last token's among them; -1: it does not draft for it."""
        return -1

    cdef void begin(self, sequence_t *s, int32_t room) noexcept nogil:
        """Add these rows, ``room`` at most, the last one with logits."""

    cdef void extend(self, sequence_t *s, int32_t row) noexcept nogil:
        """Add the row of the token that was drafted last, out of the logits of a ``row`` of the call before."""

    cdef void end(self, sequence_t *s) noexcept nogil:
        """Nothing more is drafted for this step."""

    cdef int32_t decode(self) noexcept nogil:
        """llama_decode's code for the batch."""
        return -1

    cdef void forget(self) noexcept nogil:
        """Empty its memory."""
        llama_memory_clear(self.memory, False)

    cdef int32_t fill(self, const sequence_t *s, int32_t room) noexcept nogil:
        """Add up to ``room`` rows that its memory lacks of a sequence, but for the last; how many these are."""
        return 0

    cdef void make_room(self, const live_t *live) noexcept nogil:
        """Forget sequences that do not run where the next calls may need their room."""


cdef double fastest(Proposer self, int32_t n_rows, int32_t n_outputs, double before) except -1:
    """The seconds of a call, or those of one ``before`` (0: there was none) that were fewer."""
    cdef int32_t i, code
    cdef double start
    self.batch.n_tokens = 0
    for i in range(n_rows):
        proposer_row(self, 0, i, 0, i >= n_rows - n_outputs)
    start = proposer_clock(self)
    with nogil:
        code = self.decode()
        llama_synchronize(self.ctx)
    start = proposer_clock(self) - start
    llama_memory_clear(self.memory, False)
    if code != 0:
        raise RuntimeError(f"what drafts does not compute: llama_decode returned {code}")
    return min(start, before) if before else start


cdef double proposer_clock(Proposer self) noexcept nogil:
    """What calls are timed by, as timing_clock steps: where others than CPUs compute this thread but waits."""
    return thread_now() if self.model.on_cpu and self.target.model.on_cpu else now()


cdef void proposer_row(Proposer self, int32_t token, int32_t position, int32_t seq_id, bint output) noexcept nogil:
    """Add a row to the batch, which has room for it."""
    cdef int32_t i = self.batch.n_tokens
    self.batch.token[i] = token
    self.batch.pos[i] = position
    self.batch.n_seq_id[i] = 1
    self.batch.seq_id[i][0] = seq_id
    self.batch.logits[i] = output
    self.batch.n_tokens = i + 1


cdef double proposer_seconds(Proposer self, int32_t n, int32_t most, int32_t n_fed) noexcept nogil:
    """What ``most`` tokens for each of ``n`` sequences take, about, whose memory lacks ``n_fed`` rows besides."""
    return most * (self.fixed + n * self.per_row) + n_fed * self.per_fed


cdef int proposer_draft(
    Proposer self, sequence_t **drafting, const int32_t *lengths, int32_t n, int32_t n_fed
) noexcept nogil:
    """Draft up to ``lengths`` tokens, one at least, for each of ``n`` sequences that are little ``behind``, ``n_fed``
    rows in all, into their proposals: 0, or llama_decode's code, and then nothing is drafted."""
    cdef int32_t i, n_left = 0, code = 0, n_calls = 0
    cdef int32_t at[LLAMA_MAX_SEQ]
    cdef int32_t wanted[LLAMA_MAX_SEQ]
    cdef sequence_t *left[LLAMA_MAX_SEQ]
    cdef double began = proposer_clock(self), expected = 0
    self.batch.n_tokens = 0
    for i in range(n):
        drafting[i].draft.proposal.n = 0
        self.begin(drafting[i], self.capacity - self.batch.n_tokens - (n - i - 1))
        left[i] = drafting[i]
        at[i] = self.batch.n_tokens - 1
        wanted[i] = lengths[i]
    n_left = n
    while n_left:
        if n_calls:
            self.batch.n_tokens = 0
            for i in range(n_left):
                self.extend(left[i], at[i])
                at[i] = i
        n_calls += 1
        expected += proposer_seconds(self, n_left, 1, 0)
        code = call(self)
        if code != 0:
            break
        n_left = take(self, left, at, wanted, n_left)
    for i in range(n):
        if code != 0:
            drafting[i].draft.proposal.n = 0
        else:
            self.end(drafting[i])
    if code == 0:
        observe(self, expected + n_fed * self.per_fed, proposer_clock(self) - began)
    return code


cdef int32_t proposer_fill(
    Proposer self, sequence_t **filling, int32_t n, int32_t room, double *seconds
) noexcept nogil:
    """Compute up to ``room`` rows that its memory lacks of ``n`` sequences, of the first ones first, so that these can
    be drafted for soon: how many rows, and the ``seconds`` that took."""
    cdef int32_t i, n_rows
    cdef double began = proposer_clock(self)
    seconds[0] = 0
    room = min(room, self.capacity)
    self.batch.n_tokens = 0
    for i in range(n):
        if self.batch.n_tokens >= room:
            break
        self.fill(filling[i], room - self.batch.n_tokens)
    n_rows = self.batch.n_tokens
    if n_rows == 0 or call(self) != 0:
        return 0
    self.n_free -= n_rows
    # nobody looks at logits, for which others wait
    llama_synchronize(self.ctx)
    seconds[0] = proposer_clock(self) - began
    observe(self, self.fixed + n_rows * self.per_fed, seconds[0])
    return n_rows


cdef int32_t call(Proposer self) noexcept nogil:
    """Compute the batch: llama_decode's code. Where that is not 0, everybody begins anew: the memory may be full, or
    worse."""
    cdef int32_t code
    self.rows_fed += self.batch.n_tokens
    self.calls += 1
    code = self.decode()
    if code != 0:
        self.failures += 1
        self.forget()
        if self.failures == 1:
            tell(code)
    return code


cdef void tell(int32_t code) noexcept with gil:
    """Once: whoever drafts so badly may fail in each step."""
    logger.warning("drafts   llama_decode returned %d to who drafts: steps go on without, and failures count from now "
                   "on in silence", code)


cdef int32_t take(Proposer self, sequence_t **left, int32_t *at, int32_t *wanted, int32_t n) noexcept nogil:
    """Take the likeliest token of each row into its sequence's proposal; how many of the sequences go on."""
    cdef int32_t i, token, n_left = 0
    cdef float *logits
    cdef sequence_t *s
    for i in range(n):
        s = left[i]
        logits = llama_get_logits_ith(self.ctx, at[i])
        token = likeliest(logits, self.n_vocab, self.least) if logits != NULL else -1
        if token < 0:
            continue
        s.draft.proposal.tokens[s.draft.proposal.n] = token
        s.draft.proposal.n += 1
        if s.draft.proposal.n < wanted[i]:
            left[n_left] = s
            at[n_left] = at[i]
            wanted[n_left] = wanted[i]
            n_left += 1
    return n_left


cdef int32_t likeliest(const float *logits, int32_t n, float least) noexcept nogil:
    """The token of the largest logit, -1 where it is less probable than ``least``."""
    cdef int32_t i, best = 0
    cdef double total = 0
    for i in range(1, n):
        if logits[i] > logits[best]:
            best = i
    if least > 0:
        for i in range(n):
            total += expf(logits[i] - logits[best])
        if 1 < least * total:
            return -1
    return best


cdef void observe(Proposer self, double expected, double seconds) noexcept nogil:
    """Calls that were expected to take so long took so long."""
    cdef double surprise = min(max(seconds / max(expected, 1e-9), 0.5), 2.0)
    self.fixed *= 1 + FRESH * (surprise - 1)
    self.per_row *= 1 + FRESH * (surprise - 1)
    self.per_fed *= 1 + FRESH * (surprise - 1)
