"""What a step costs, learned from the steps there were."""
from libc.stdint cimport int32_t
from libc.string cimport memset


cdef void cost_init(step_cost_t *self, double decay) noexcept nogil:
    memset(self, 0, sizeof(step_cost_t))
    self.decay = decay
    self.excess = 1


cdef void cost_add(step_cost_t *self, int32_t rows, double seconds) noexcept nogil:
    self.weight = self.weight * self.decay + 1
    self.rows = self.rows * self.decay + rows
    self.seconds = self.seconds * self.decay + seconds
    self.rows_rows = self.rows_rows * self.decay + <double> rows * rows
    self.rows_seconds = self.rows_seconds * self.decay + rows * seconds


cdef void cost_add_prompts(
    step_cost_t *self, int32_t rows, double seconds, double weight, double most
) noexcept nogil:
    """A step some of whose rows were a prompt's. It has ``weight`` in the excess, which is believed up to ``most``."""
    cdef double fixed, per_row
    cost_add(self, rows, seconds)
    cost_fit(self, &fixed, &per_row)
    self.excess += weight * (min(max(seconds / (fixed + per_row * rows), 1.0), most) - self.excess)


cdef void cost_fit(const step_cost_t *self, double *fixed, double *per_row) noexcept nogil:
    """Weighted least squares of seconds over rows. Steps of nearly equal size leave the slope open: then all of the
    time is put on the rows, which underestimates what fits into a step."""
    cdef double spread = self.weight * self.rows_rows - self.rows * self.rows
    cdef double slope = 0
    if spread > 0.01 * self.rows * self.rows:
        slope = (self.weight * self.rows_seconds - self.rows * self.seconds) / spread
    if slope <= 0 or slope * self.rows > self.seconds:
        slope = self.seconds / self.rows
    per_row[0] = max(slope, 1e-9)
    fixed[0] = max(0.0, (self.seconds - slope * self.rows) / self.weight)
