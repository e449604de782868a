# How many tokens a model that drafts is asked for in a step, and of whose prompts its memory is filled.
from libc.stdint cimport int32_t

from .acceptance cimport acceptance_t
from .cost cimport times_t
from .headers.llama cimport LLAMA_MAX_SEQ
from .proposer cimport Proposer
from .sequence cimport sequence_t

# For whom it could draft, and what for.
cdef struct calls_t:
    const acceptance_t *acceptance
    const times_t *times
    int32_t source
    bint in_passes              # all have to draft as many
    int32_t useful              # rows that the step has in any case
    int32_t room                # for drafted ones
    int32_t n
    sequence_t *asking[LLAMA_MAX_SEQ]
    double trust[LLAMA_MAX_SEQ]     # acceptance_trust's
    int32_t most[LLAMA_MAX_SEQ]     # tokens that may be drafted
    int32_t lacks[LLAMA_MAX_SEQ]    # rows, the last token's among them
    int32_t n_fed               # of them in all, but for the last ones
    int32_t lengths[LLAMA_MAX_SEQ]  # tokens that are asked for
    double sooner               # seconds by which each token comes, about

cdef void calls_init(
    calls_t *self, const acceptance_t *acceptance, const times_t *times, int32_t source, bint in_passes, int32_t useful,
    int32_t room
) noexcept nogil
cdef void calls_add(calls_t *self, sequence_t *s, int32_t most, int32_t lacks) noexcept nogil
cdef int32_t calls_plan(calls_t *self, Proposer proposer) noexcept nogil
cdef double calls_fill(calls_t *self, Proposer proposer, double step, double share) noexcept nogil
