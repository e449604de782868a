# What a step costs, as a line over its rows.
from libc.stdint cimport int32_t

# A step of n rows takes about fixed + per_row * n seconds: a line fitted to the recent steps, old ones decaying.
cdef struct step_cost_t:
    double decay            # the past's weight after each step
    double weight
    double rows
    double seconds
    double rows_rows
    double rows_seconds
    # How much longer than the line says the recent steps with rows of prompts took, 1: no longer. A row costs the more
    # the longer its prompt is already, which the line, being over rows alone, learns too late.
    double excess

cdef void cost_init(step_cost_t *self, double decay) noexcept nogil
cdef void cost_add(step_cost_t *self, int32_t rows, double seconds) noexcept nogil
cdef void cost_add_prompts(
    step_cost_t *self, int32_t rows, double seconds, double weight, double most
) noexcept nogil
cdef void cost_fit(const step_cost_t *self, double *fixed, double *per_row) noexcept nogil
