# A sequence and its laws:
#
# - A row is what llama_decode computes, a token is an id of the vocabulary, a position is where attention finds it.
#   Token k of a sequence is row k of its memory and lies at sequence_position(s, k), which nobody else may take for k.
# - Rows of media have ids of their own among the tokens (spans.pxd). What they show is computed in steps of their own,
#   and nothing that is kept or lent ends inside a span.
# - n_past <= n_certain <= n_tokens: tokens[:n_past] are in memory, tokens[:n_certain] are known, and what follows up to
#   n_tokens is drafted: it may be taken back, so it is neither shared nor told. Drafts are there while a step fills,
#   decodes and verifies; before and after it n_certain is n_tokens.
# - All tokens are in memory only while the logits of the last one are looked at or wait for a mask.
# - The rows of a step that give logits are the last ones it has there: n_outputs from first_output on.
# - What a sequence is at the moment is its phase, which sequence_enter alone sets.
# - Each struct in it is made by sequence.pyx and from then on written by one module: tokens by tokens, clock, and how
#   many tokens are in memory, by sequence, rows by rows, share by live, out by output, draft by drafter, and by lookup
#   where its texts were left.
# - Only sequences of one salt share what they computed; what else must keep them apart, as a group of adapters does,
#   goes into the salt. Which groups may be in one step is for rows to decide, which fills the steps.
# - Its rows of one step are of one group. Where the prompt invokes an adapter it gets another group and another salt:
#   tokens before that place are shared by the one, those from there on by the other.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint64_t

from .budget cimport budget_t
from .constraint cimport Constraint, constraint_t
from .draft cimport draft_t
from .draw cimport sampler_t
from .invocation cimport Invocation, invocation_t
from .logprobs cimport logprobs_t
from .sampler cimport Sampler
from .spans cimport span_behind, span_t, spans_position
from .text cimport text_t
from .tokens cimport tokens_t

# How a sequence ended.
cpdef enum:
    FINISH_NONE = 0
    FINISH_STOP = 1
    FINISH_LENGTH = 2
    FINISH_REFUSED = 3      # its constraint cannot be followed any further
    FINISH_HALTED = 4       # nobody waits for it any more; never in the Outbox

# What a sequence is at the moment; all but PHASE_WAITING have a sequence id, until they are removed.
cpdef enum:
    PHASE_WAITING           # it does not run: it is new, or was preempted
    PHASE_RESTORING         # its first n_restore tokens come from elsewhere
    PHASE_FOLLOWING         # its leader computes what they have in common
    PHASE_PREFILLING        # it takes its turn at the rows that are left for prompts
    PHASE_DECODING          # its rows are in the next step
    PHASE_PARKED            # the logits of its last token wait for a mask, or its end for its grammar's word
    PHASE_ENDED
    N_PHASES

# Its part of the current step.
cdef struct rows_t:
    int32_t n
    int32_t first_output    # which row of the batch is the first of those that give logits
    int32_t n_outputs
    int32_t n_drafted       # of drafted tokens: the last ones
    int32_t n_gave          # that gave tokens: without drafts each of them would have been a step's last

# What it has from others, waits for, and can lend.
cdef struct share_t:
    const char *salt        # (n_salt,) bytes
    Py_ssize_t n_salt
    bint private            # nobody who comes later will have its salt
    uint64_t seed           # the salt's digest, the parent of the first block
    uint64_t *hashes        # (n_blocks,) of the whole blocks of certain tokens, as blocks.pyx chains them
    int32_t n_blocks
    int32_t n_runs          # how often it was admitted: once, and once more for each preemption
    int32_t n_cached        # tokens of the prompt that another sequence had computed
    int32_t n_restore       # it waits until so many tokens are restored
    int32_t leader          # the sequence id whose prefix it waits for, -1: none
    int32_t n_shared        # how much of that prefix they have in common
    int64_t lender          # the tag of the last sequence that it took tokens from, 0: none
    int32_t n_lent          # of the n_cached ones, those that came from running sequences
    int32_t goal            # once so many tokens are in memory it, or somebody who waits for them, can go on

# What a client asks of its output, by the names of engine.types.OutputOptions; 0 asks for nothing.
cdef struct options_t:
    int32_t min_tokens      # the tokens that end it cannot come before
    bint keep_stop          # a stop string is shown
    bint ignore_eos         # an end-of-generation token does not end it
    bint tell_tokens        # the ids of its tokens are told beside its text
    bint tell_progress      # each step that computes rows of its prompt is told
    bint announce           # that its first rows are computed is told, also where there is no text yet
    bint speculative        # tokens may be drafted; 1 where nothing is said

# How its tokens are chosen, become text, and end.
cdef struct out_t:
    options_t options
    int32_t finish
    int32_t matched_stop    # which of its stop strings, then of its stop tokens, ended it; -1: none of them
    int32_t n_unreported    # tokens generated since the last record in the Outbox
    int32_t *stop_tokens    # (n_stop_tokens,) that end it beside the end-of-generation tokens
    int32_t n_stop_tokens
    bint show_control
    const int32_t *preserved    # (n_preserved,) control tokens whose text is shown all the same
    int32_t n_preserved
    sampler_t *sampler      # the Sequence holds its owner
    constraint_t *constraint  # the same; NULL: none
    text_t text
    budget_t budget
    logprobs_t logprobs

# Monotonic seconds; 0: not yet.
cdef struct clock_t:
    double submitted
    double scheduled        # when work on it began
    double first_token
    double newest_token

cdef struct sequence_t:
    PyObject *owner         # its Sequence; a Runner holds it while it runs
    int64_t tag             # names it in the Outbox
    int32_t group           # of adapters, see adapters.pxd; 0: none
    invocation_t invocation  # and where it gets another one
    int32_t seq_id          # its llama_seq_id while it runs, else -1; live's to give
    int phase
    bint astray             # it has broken a law; Runner.check tells
    # Rows of it were taken back and none computed since: llama.cpp copies its recurrent state as it was before that.
    bint rolled_back
    tokens_t tokens
    rows_t rows
    share_t share
    out_t out
    draft_t draft
    clock_t clock

cdef class Sequence:
    cdef sequence_t state
    cdef Sampler sampler
    cdef Constraint constraint
    cdef bytes preserved
    cdef bytes prediction
    cdef list spans             # its Spans, and beside each whoever holds its rows
    cdef readonly bytes salt
    cdef readonly tuple checkpoints
    cdef readonly tuple media
    cdef readonly Invocation invocation
    cdef readonly object adapters   # whoever holds its group

cdef inline int32_t sequence_position(const sequence_t *self, int32_t k) noexcept nogil:
    """Where its token k lies, or where its next one will."""
    if self.tokens.n_spans == 0:
        return k
    return spans_position(self.tokens.spans, self.tokens.n_spans, k)

cdef inline int32_t sequence_group(const sequence_t *self) noexcept nogil:
    """The group of its next rows."""
    return self.group if self.tokens.n_past < self.invocation.at or self.invocation.at == 0 else self.invocation.group

cdef inline int32_t sequence_ahead(const sequence_t *self) noexcept nogil:
    """How many rows it can have in the next step: up to where it gets another group."""
    if self.tokens.n_past < self.invocation.at:
        return self.invocation.at - self.tokens.n_past
    return self.tokens.n_tokens - self.tokens.n_past

cdef inline int32_t sequence_end(const sequence_t *self, int32_t n) noexcept nogil:
    """The position behind the last one of its first n tokens: what llama_memory_seq_pos_max says, and one."""
    return sequence_position(self, n - 1) + 1 if n > 0 else 0

cdef inline const span_t *sequence_span(const sequence_t *self) noexcept nogil:
    """The span that its next rows are of; NULL: they are tokens."""
    cdef const span_t *span
    if self.tokens.n_spans == 0:
        return NULL
    span = span_behind(self.tokens.spans, self.tokens.n_spans, self.tokens.n_past)
    return span if span != NULL and span.row <= self.tokens.n_past else NULL

cdef bint sequence_may_enter(int phase, int next_phase) noexcept nogil
cdef void sequence_enter(sequence_t *self, int phase) noexcept nogil
cdef void sequence_reach(sequence_t *self, int32_t n_past) noexcept nogil
cdef void sequence_schedule(sequence_t *self, double when) noexcept nogil
cdef void sequence_tick(sequence_t *self, double when) noexcept nogil
