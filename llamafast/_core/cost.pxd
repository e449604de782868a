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

cdef enum:
    MAX_TIMED = 64

# What steps of 1 to MAX_TIMED rows take beside each other: no line, for products and attention have their steps.
cdef struct times_t:
    double seconds[MAX_TIMED + 1]   # by rows, never falling; [1] is 0 as long as nothing was measured
    double per_cell                 # what each cell before it adds to a row
    double cells                    # before each of a step's rows, in the mean
    double change                   # what one of another number of rows than the last takes longer: a graph is made
    double stretch                  # how much longer the last ones took: contexts grow, and others compute too
    int32_t last                    # rows of the last step, with prompts or without
    int32_t learned                 # rows of the last one that said something of sizes
    bint given                      # they are as a test has them, and nothing is learned

cdef void times_fill(
    times_t *self, const int32_t *rows, const double *measured, int32_t n, double change
) noexcept nogil
cdef double times_of(const times_t *self, int32_t rows) noexcept nogil
cdef double times_with(const times_t *self, int32_t useful, int32_t drafted) noexcept nogil
cdef void times_observe(times_t *self, int32_t rows, double seconds) noexcept nogil
