"""Distributions of times and sizes, counted where they happen: a token costs a subtraction and a short scan."""
from libc.stdint cimport int64_t

from .sequence cimport sequence_t, sequence_tick


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
    cdef histogram_t *of_seconds[8]
    cdef histogram_t *of_sizes[4]
    of_seconds[:] = [
        &self.step_seconds, &self.queue_seconds, &self.first_token, &self.inter_token, &self.prefill, &self.generation,
        &self.inference, &self.end_to_end,
    ]
    of_sizes[:] = [&self.step_rows, &self.prompt_tokens, &self.generated_tokens, &self.max_tokens]
    for histogram in of_seconds:
        histogram.bounds = seconds_bounds
        histogram.n_bounds = N_SECONDS_BOUNDS
    for histogram in of_sizes:
        histogram.bounds = size_bounds
        histogram.n_bounds = N_SIZE_BOUNDS


cdef void observe(histogram_t *self, double value) noexcept nogil:
    cdef int bucket = 0
    while bucket < self.n_bounds and value > self.bounds[bucket]:
        bucket += 1
    self.counts[bucket] += 1
    self.sum += value


cdef void observe_step(histograms_t *self, double seconds, int64_t rows) noexcept nogil:
    observe(&self.step_seconds, seconds)
    observe(&self.step_rows, <double> rows)


cdef void observe_token(histograms_t *self, sequence_t *s, double when) noexcept nogil:
    """A sequence got a token, or several, at ``when``."""
    if s.clock.first_token == 0:
        observe(&self.first_token, when - s.clock.submitted)
        observe_prompt(self, s, when)
    else:
        observe(&self.inter_token, when - s.clock.newest_token)
    sequence_tick(s, when)


cdef void observe_prompt(histograms_t *self, const sequence_t *s, double when) noexcept nogil:
    """A sequence's prompt was done at ``when``."""
    observe(&self.queue_seconds, s.clock.scheduled - s.clock.submitted)
    observe(&self.prefill, when - s.clock.scheduled)
    observe(&self.prompt_tokens, s.tokens.n_prompt)


cdef void observe_end(histograms_t *self, const sequence_t *s, double when) noexcept nogil:
    """A sequence has ended at ``when``, behind its last token, without another one, or without any."""
    if s.clock.first_token == 0:
        observe_prompt(self, s, when)
    observe(&self.generation, when - s.clock.first_token if s.clock.first_token else 0)
    observe(&self.inference, when - s.clock.scheduled)
    observe(&self.end_to_end, when - s.clock.submitted)
    observe(&self.generated_tokens, s.tokens.n_certain - s.tokens.n_prompt)
    observe(&self.max_tokens, s.tokens.n_max - s.tokens.n_prompt)
    self.finished[s.out.finish] += 1


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
        "prefill_seconds": histogram_read(&self.prefill),
        "generation_seconds": histogram_read(&self.generation),
        "inference_seconds": histogram_read(&self.inference),
        "end_to_end_seconds": histogram_read(&self.end_to_end),
        "request_prompt_tokens": histogram_read(&self.prompt_tokens),
        "request_generated_tokens": histogram_read(&self.generated_tokens),
        "request_max_tokens": histogram_read(&self.max_tokens),
    }
