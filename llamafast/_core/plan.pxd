# How many drafted tokens a step decodes.
from libc.stdint cimport int32_t

from .cost cimport times_t

# Of one proposal's rows.
cdef struct weight_t:
    double worth        # the share of a row that one gives which comes: what needs no step of its own is worth nothing
    double seconds      # that each takes beside the step

# Of n proposals, lengths[i] tokens each with survival[i] (never rising), ``taken[i]`` tokens; taken is 0 before. In any
# case the step takes ``beside`` seconds more than its rows do.
cdef double plan_rows(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, int32_t *taken
) noexcept nogil
cdef double plan_passes(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, int32_t *taken
) noexcept nogil
cdef bint plan_pays(double gain) noexcept nogil
cdef int32_t plan_spare(const times_t *times, int32_t useful, double stretch) noexcept nogil
