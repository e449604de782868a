# How many drafted tokens a step decodes.
from libc.stdint cimport int32_t

from .cost cimport times_t

# Of n proposals, lengths[i] tokens each with survival[i] (never rising), ``taken[i]`` tokens; taken is 0 before.
cdef double plan_rows(
    const times_t *times, const float **survival, const int32_t *lengths, int32_t n, int32_t useful, int32_t room,
    int32_t *taken
) noexcept nogil
cdef double plan_passes(
    const times_t *times, const float **survival, const int32_t *lengths, int32_t n, int32_t useful, int32_t room,
    int32_t *taken
) noexcept nogil
