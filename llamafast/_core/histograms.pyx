"""Distributions of times and sizes, counted where they happen: a token costs a subtraction and a short scan."""
from libc.stdint cimport int64_t

from .headers.clock cimport now
from .sequence cimport FINISH_NONE, sequence_t


cdef extern from *:
    """
    static const double seconds_bounds[] = {
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
        1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
    };
    static const double size_bounds[] = {
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072,
    };
    enum { N_SECONDS_BOUNDS = sizeof seconds_bounds / sizeof *seconds_bounds };
    enum { N_SIZE_BOUNDS = sizeof size_bounds / sizeof *size_bounds };
    """
    const double *seconds_bounds
    const double *size_bounds
    int N_SECONDS_BOUNDS
    int N_SIZE_BOUNDS


cdef void histograms_init(histograms_t *self) noexcept nogil:
    """Give zeroed memory its bounds."""
    self.step_seconds.bounds = self.queue_seconds.bounds = self.first_token.bounds = seconds_bounds
    self.inter_token.bounds = self.end_to_end.bounds = seconds_bounds
    self.step_seconds.n_bounds = self.queue_seconds.n_bounds = self.first_token.n_bounds = N_SECONDS_BOUNDS
    self.inter_token.n_bounds = self.end_to_end.n_bounds = N_SECONDS_BOUNDS
    self.step_rows.bounds = self.prompt_tokens.bounds = self.generated_tokens.bounds = size_bounds
    self.step_rows.n_bounds = self.prompt_tokens.n_bounds = self.generated_tokens.n_bounds = N_SIZE_BOUNDS


cdef void observe(histogram_t *self, double value) noexcept nogil:
    cdef int bucket = 0
    while bucket < self.n_bounds and value > self.bounds[bucket]:
        bucket += 1
    self.counts[bucket] += 1
    self.sum += value


cdef void observe_step(histograms_t *self, double seconds, int64_t rows) noexcept nogil:
    observe(&self.step_seconds, seconds)
    observe(&self.step_rows, <double> rows)


cdef void observe_admitted(histograms_t *self, sequence_t *s) noexcept nogil:
    """A sequence runs; the first time counts."""
    if s.admitted == 0:
        s.admitted = now()
        observe(&self.queue_seconds, s.admitted - s.submitted)


cdef void observe_token(histograms_t *self, sequence_t *s, double when) noexcept nogil:
    """A sequence got a token at ``when``, its last one if it has finished."""
    if s.newest_token == 0:
        observe(&self.first_token, when - s.submitted)
        observe(&self.prompt_tokens, s.n_prompt)
    else:
        observe(&self.inter_token, when - s.newest_token)
    s.newest_token = when
    if s.finish != FINISH_NONE:
        observe(&self.end_to_end, when - s.submitted)
        observe(&self.generated_tokens, s.n_tokens - s.n_prompt)
        self.finished[s.finish] += 1


cdef tuple histogram_read(const histogram_t *self):
    return (
        tuple([self.bounds[i] for i in range(self.n_bounds)]),
        [self.counts[i] for i in range(self.n_bounds + 1)],
        self.sum,
    )


cdef dict histograms_read(const histograms_t *self):
    """(upper bounds, counts of the buckets between them, sum) of each."""
    return {
        "step_seconds": histogram_read(&self.step_seconds),
        "step_rows": histogram_read(&self.step_rows),
        "queue_seconds": histogram_read(&self.queue_seconds),
        "first_token_seconds": histogram_read(&self.first_token),
        "inter_token_seconds": histogram_read(&self.inter_token),
        "end_to_end_seconds": histogram_read(&self.end_to_end),
        "request_prompt_tokens": histogram_read(&self.prompt_tokens),
        "request_generated_tokens": histogram_read(&self.generated_tokens),
    }
