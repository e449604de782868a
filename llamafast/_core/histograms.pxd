# The distributions that are counted, and what counts into them.
from libc.stdint cimport int64_t

from .sequence cimport sequence_t

cdef enum:
    MAX_BUCKETS = 32
    MAX_FINISH = 8

# Buckets of fixed bounds, not cumulative; the last one in use has no upper bound.
cdef struct histogram_t:
    const double *bounds
    int n_bounds
    int64_t counts[MAX_BUCKETS]
    double sum

# Written by the engine thread alone; whoever reads meanwhile may miss the step that is ending.
cdef struct histograms_t:
    histogram_t step_seconds
    histogram_t step_rows
    histogram_t queue_seconds       # from submitted to the first work, of sequences whose prompt is done
    histogram_t first_token         # seconds from submitted to the first token
    histogram_t inter_token         # seconds from each token to the next, pauses by preemption included
    histogram_t prefill             # seconds from the first work to the first token, or the end where none comes
    histogram_t generation          # seconds from the first token to the end
    histogram_t inference           # both: seconds from the first work to the end
    histogram_t end_to_end          # seconds from submitted to the end
    histogram_t prompt_tokens       # of sequences whose prompt is done
    histogram_t generated_tokens    # of sequences that ended, all but halted ones
    histogram_t max_tokens          # how many these might have generated
    int64_t finished[MAX_FINISH]    # sequences by FINISH_*

cdef void histograms_init(histograms_t *self) noexcept nogil
cdef void observe(histogram_t *self, double value) noexcept nogil
cdef void observe_step(histograms_t *self, double seconds, int64_t rows) noexcept nogil
cdef void observe_token(histograms_t *self, sequence_t *s, double when) noexcept nogil
cdef void observe_end(histograms_t *self, const sequence_t *s, double when) noexcept nogil
cdef dict histograms_read(const histograms_t *self)
