"""Drafts under grammars: how long they may be, and what they are worth beside others.

Behind each drafted token that is not forced a mask is computed, beside llama_decode and in one thread for all. So a
draft is no longer than its masks have time, counted by what this grammar's took lately, and their seconds are counted
with the step's. Forced tokens come several at a time in any case: a row of them saves no step.
"""
from libc.stdint cimport int32_t

from .constraint cimport MAX_AHEAD, constraint_allows, constraint_looks_ahead, constraint_share
from .live cimport live_t
from .plan cimport weight_t
from .sequence cimport PHASE_DECODING, sequence_t


cdef bint constrained_drafts(const sequence_t *s) noexcept nogil:
    """Whether its grammar, where it has one, lets tokens be drafted now."""
    return s.out.constraint == NULL or constraint_looks_ahead(s.out.constraint)


cdef double constrained_seconds(const live_t *live) noexcept nogil:
    """What the masks of a step take in which nothing is drafted."""
    cdef int32_t i
    cdef double seconds = 0
    for i in range(live.n):
        if live.states[i].phase == PHASE_DECODING and live.states[i].out.constraint != NULL:
            seconds += live.states[i].out.constraint.mask_seconds
    return seconds


cdef void constrained_weigh(const sequence_t *s, weight_t *weight) noexcept nogil:
    """Give the rows of a sequence's proposal their weight."""
    weight.worth = 1
    weight.seconds = 0
    if s.out.constraint != NULL:
        weight.worth = constraint_share(s.out.constraint)
        weight.seconds = weight.worth * s.out.constraint.mask_seconds


cdef void constrained_limit(
    sequence_t **drafting, int32_t *lengths, const weight_t *weights, int32_t n, double each, double together
) noexcept nogil:
    """Cut proposals of ``n`` sequences to what their grammars allow, as far as that is known, and to as many tokens as
    have their masks in so many seconds, of ``each`` and all ``together``."""
    cdef int32_t i
    cdef double seconds, left = max(together, 0.0)
    for i in range(n):
        if drafting[i].out.constraint == NULL:
            continue
        lengths[i] = constraint_allows(drafting[i].out.constraint, drafting[i].draft.proposal.tokens, lengths[i])
        lengths[i] = min(lengths[i], <int32_t> (MAX_AHEAD / weights[i].worth))
        seconds = weights[i].seconds
        if seconds > 0:
            lengths[i] = min(lengths[i], <int32_t> (min(each, left) / seconds))
        left -= lengths[i] * seconds


cdef double constrained_saved(
    const sequence_t *s, int32_t accepted, double row_cost, double row_seconds
) noexcept nogil:
    """The rows that a sequence's draft has saved in the last step, ``accepted`` tokens of which came, below 0: has
    cost. Each row that gave tokens behind the first has saved a step; tokens forced with others would have had their
    rows anyway."""
    cdef int32_t n_steps = max(s.rows.n_gave - 1, 0)
    cdef double saved
    if s.out.constraint == NULL:
        return accepted - row_cost * s.rows.n_drafted
    saved = n_steps - row_cost * (s.rows.n_drafted - accepted + n_steps)
    if row_seconds > 0:
        saved -= (s.rows.n_drafted - accepted) * s.out.constraint.mask_seconds / row_seconds
    return saved
