from libc.stdint cimport int32_t, int64_t

from .constraint cimport Masker
from .context cimport Batch, Context
from .cost cimport step_cost_t
from .histograms cimport histograms_t
from .outbox cimport Outbox
from .pick cimport scratch_t
from .running cimport running_t
from .sequence cimport Sequence
from .vocab cimport Vocab

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
    cdef Vocab vocab
    cdef Batch batch
    cdef Outbox outbox
    cdef list running                           # Sequences in order of admission
    cdef running_t live                         # the same, in the same order
    cdef list free_seq_ids
    cdef dict state_sizes                       # bytes of a state by its number of tokens
    cdef int32_t n_batch
    cdef int32_t prefill_chunk
    cdef int32_t n_scored_max                   # rows of a step that score one prompt
    cdef double target_itl                      # seconds, 0: adaptive
    cdef int32_t attention_tile
    cdef bint prefills_alone                    # the last step held decoding back
    cdef int attention                          # atomic
    cdef scratch_t scratch
    cdef readonly Masker masker
    cdef step_cost_t cost
    cdef counters_t counters
    cdef histograms_t observed

    cdef bint _set_state(self, int32_t seq_id, bytes saved)
    cdef bytes _get_state(self, int32_t seq_id, int32_t n_tokens)
    cdef void _let_go(self, Sequence sequence)
