from libc.stdint cimport int32_t, int64_t

from .batching cimport batching_t
from .choosing cimport Chooser
from .constraint cimport Masker
from .context cimport Batch, Context
from .histograms cimport histograms_t
from .outbox cimport Outbox
from .prefiller cimport Prefiller
from .running cimport running_t
from .sequence cimport Sequence

cdef struct counters_t:
    int64_t steps
    int64_t rows
    int64_t rows_max
    int64_t prompt_tokens
    int64_t generated_tokens
    int64_t sequences           # summed over steps
    double prompt_seconds       # a step's time divided by its rows
    double generated_seconds
    double step_seconds
    double decode_seconds
    double sample_seconds
    double last_step            # monotonic time of the last finished step

cdef class Runner:
    cdef Context context
    cdef Batch batch
    cdef Outbox outbox
    cdef list running                           # Sequences in order of admission
    cdef running_t live                         # the same, in the same order
    cdef list free_seq_ids
    cdef batching_t batching
    cdef int attention                          # atomic
    cdef Prefiller prefiller                    # or None
    cdef double spare                           # seconds it may take before the next step
    cdef readonly Masker masker
    cdef Chooser chooser
    cdef counters_t counters
    cdef histograms_t observed

    cdef void _let_go(self, Sequence sequence)
