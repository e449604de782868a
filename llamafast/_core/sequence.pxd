from libc.stdint cimport int32_t, int64_t, uint64_t

from .draw cimport sampler_t
from .logprobs cimport logprobs_t
from .masks cimport Constraint, constraint_t
from .sampler cimport Sampler
from .text cimport text_t
from .vocab cimport Vocab

# How a sequence ended.
cpdef enum:
    FINISH_NONE = 0
    FINISH_STOP = 1
    FINISH_LENGTH = 2
    FINISH_REFUSED = 3      # its constraint cannot be followed any further
    FINISH_HALTED = 4       # nobody waits for it any more; never in the Outbox

cdef struct sequence_t:
    int64_t tag             # names it in the Outbox
    int32_t seq_id          # its llama_seq_id while it runs, else -1
    int32_t *tokens         # (capacity,) prompt, then output
    int32_t capacity
    int32_t n_prompt
    int32_t n_tokens
    int32_t n_past          # tokens[:n_past] are in memory; all of them only while its logits wait for a mask
    int32_t n_max           # n_tokens stops growing here
    int32_t n_min           # the tokens that end it cannot come before
    int32_t *stop_tokens    # (n_stop_tokens,) that end it beside the end-of-generation tokens
    int32_t n_stop_tokens
    int32_t n_rows          # rows it has in the current step
    bint ready              # it may have rows in the current step
    int32_t first_row       # which of the batch the first of them is
    int32_t output_row      # which of them gives logits, -1: none
    int32_t n_unreported    # tokens generated since the last record in the Outbox
    int32_t n_runs          # how often it was admitted: once, and once more for each preemption
    int32_t n_cached        # tokens of the prompt that another sequence had computed
    int32_t n_lent          # of those, taken from one that runs
    int32_t n_restore       # it waits until so many tokens are restored
    bint apart              # the Prefiller computes them, and they come in parts
    int32_t n_found         # so many of those were computed for others
    int32_t save_at         # once so many tokens are in memory, run() returns for them to be saved
    int32_t leader          # the sequence id whose prefix it waits for, -1: none
    int32_t n_shared        # how much of that prefix they have in common
    int32_t goal            # once so many tokens are in memory it, or somebody who waits for them, can go on
    uint64_t *hashes        # (n_blocks,) of the whole blocks of tokens, as prefix.pyx chains them
    int32_t n_blocks
    const char *salt        # (n_salt,) bytes; only sequences of one salt share anything
    Py_ssize_t n_salt
    uint64_t seed           # the salt's digest, the parent of the first block
    int32_t finish
    bint ignore_eos
    bint show_control
    const int32_t *preserved    # (n_preserved,) control tokens whose text is shown all the same
    int32_t n_preserved
    sampler_t *sampler      # the Sequence holds its owner
    constraint_t *constraint  # the same; NULL: none
    text_t text
    double submitted        # monotonic seconds
    double scheduled        # when work on it began, 0: not yet
    double first_token      # 0: none
    double newest_token
    logprobs_t logprobs

cdef class Sequence:
    cdef sequence_t state
    cdef Sampler sampler
    cdef Constraint constraint
    cdef bytes preserved
    cdef readonly bytes salt
    cdef readonly tuple checkpoints

cdef bint sequence_preserves(const sequence_t *self, int32_t token) noexcept nogil
cdef int sequence_append(sequence_t *self, int32_t token) noexcept nogil
cdef int sequence_hash(sequence_t *self) noexcept nogil
cdef void sequence_schedule(sequence_t *self, double when) noexcept nogil
