# What steps take, measured before anybody runs.
from libc.stdint cimport int32_t

from .context cimport Context
from .cost cimport times_t

cdef double timing_clock(Context context) noexcept nogil
cdef dict timing_measure(Context context, times_t *times, int32_t token, double seconds)
