# What drafts under grammars are worth, and how far they may go.
from libc.stdint cimport int32_t

from .live cimport live_t
from .plan cimport weight_t
from .sequence cimport sequence_t

cdef bint constrained_drafts(const sequence_t *s) noexcept nogil
cdef double constrained_seconds(const live_t *live) noexcept nogil
cdef void constrained_weigh(const sequence_t *s, weight_t *weight) noexcept nogil
cdef void constrained_limit(
    sequence_t **drafting, int32_t *lengths, const weight_t *weights, int32_t n, double each, double together
) noexcept nogil
cdef double constrained_saved(
    const sequence_t *s, int32_t accepted, double row_cost, double row_seconds
) noexcept nogil
