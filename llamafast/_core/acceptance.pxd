# How often what is drafted comes: by source, and by how much had matched.
from libc.stdint cimport int32_t

from .draft cimport draft_t, proposal_t

cdef enum:
    MAX_SOURCES = 5
    BY_MODELS = 3           # sources from here on have no matches: by how far they have drafted
    MATCHES = 6             # 1, 2 and 3, 4 to 7, 8 to 15, 16 to 31, more

cdef struct acceptance_t:
    double tried[MAX_SOURCES][MATCHES]
    double taken[MAX_SOURCES][MATCHES]

cdef void acceptance_init(acceptance_t *self) noexcept nogil
cdef double acceptance_chance(const acceptance_t *self, int32_t source, int32_t n_matched) noexcept nogil
cdef double acceptance_trust(const draft_t *draft, int32_t source) noexcept nogil
cdef double acceptance_rate(const acceptance_t *self, draft_t *draft, int32_t source, bint whole) noexcept nogil
cdef void acceptance_prefer(
    const acceptance_t *self, draft_t *draft, int32_t source, const proposal_t *other
) noexcept nogil
cdef int32_t acceptance_learn(acceptance_t *self, draft_t *draft, const int32_t *came, int32_t n) noexcept nogil
