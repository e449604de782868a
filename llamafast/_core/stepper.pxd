from libc.stdint cimport int64_t

from .batching cimport batching_t
from .choosing cimport Chooser
from .constraint cimport Masker
from .context cimport Batch, Context
from .histograms cimport histograms_t
from .outbox cimport Outbox
from .prefiller cimport Prefiller
from .running cimport running_t
from .sequence cimport sequence_t

cdef enum:
    # status of run(); failures of llama_decode are its own negative codes and 2
    RUN_PAUSED = 0      # interrupt() or max_steps
    RUN_NO_ROOM = 1     # llama_decode's own 1: nothing changed
    RUN_FINISHED = 3
    RUN_NO_MEMORY = 4
    RUN_SAVE_DUE = 5    # somebody has reached its save_at
    RUN_PREFILLED = 6   # the Prefiller's batch is computed

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

cdef class Stepper:
    cdef Context context
    cdef Batch batch
    cdef Outbox outbox
    cdef running_t live
    cdef batching_t batching
    cdef int attention                          # atomic
    cdef Prefiller prefiller                    # or None
    cdef public double spare                    # seconds that others may compute before the next step
    cdef readonly Masker masker
    cdef Chooser chooser
    cdef counters_t counters
    cdef histograms_t observed

cdef int stepper_choose(Stepper self, sequence_t *s, float *logits, double decoded) noexcept nogil
