# The draw by stages.
from libc.stdint cimport int32_t

from .draw cimport sampler_t, scratch_t

# As draw_token, for a sampler that has stages; penalties and DRY are among them. -1 when out of memory.
cdef int32_t draw_by_stages(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil
