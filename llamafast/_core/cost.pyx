"""What a step costs, learned from the steps there were."""
from libc.stdint cimport int32_t

# Weight of the past after each step: about the last 50 steps count.
cdef double COST_DECAY = 0.98


cdef void cost_add(step_cost_t *self, int32_t rows, double seconds) noexcept nogil:
    self.weight = self.weight * COST_DECAY + 1
    self.rows = self.rows * COST_DECAY + rows
    self.seconds = self.seconds * COST_DECAY + seconds
    self.rows_rows = self.rows_rows * COST_DECAY + <double> rows * rows
    self.rows_seconds = self.rows_seconds * COST_DECAY + rows * seconds


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


cdef class StepCost:
    """The same on its own, for tests."""
    cdef step_cost_t cost

    def add(self, int32_t rows, double seconds):
        cost_add(&self.cost, rows, seconds)

    def fit(self):
        """(fixed, per_row) in seconds. Needs a step with at least one row first."""
        cdef double fixed, per_row
        cost_fit(&self.cost, &fixed, &per_row)
        return fixed, per_row
