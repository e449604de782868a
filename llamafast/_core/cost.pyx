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


cdef void times_fill(
    times_t *self, const int32_t *rows, const double *measured, int32_t n, double change
) noexcept nogil:
    """Take what ``n`` steps (MAX_TIMED at most) of different numbers of rows took, ascending, the first of one row. One
    that took longer than one of more rows was held up."""
    cdef int32_t i, k = 0
    cdef double slope = 0
    cdef double[MAX_TIMED] seconds
    for i in range(n - 1, -1, -1):
        seconds[i] = measured[i] if i == n - 1 else min(measured[i], seconds[i + 1])
    for i in range(1, MAX_TIMED + 1):
        while k + 1 < n and rows[k + 1] <= i:
            k += 1
        if k + 1 < n:
            slope = (seconds[k + 1] - seconds[k]) / (rows[k + 1] - rows[k])
        elif k:
            slope = (seconds[k] - seconds[k - 1]) / (rows[k] - rows[k - 1])
        else:
            slope = seconds[0]
        self.seconds[i] = max(seconds[k] + slope * (i - rows[k]), self.seconds[i - 1] if i > 1 else 0.0)
    self.change = change
    self.per_cell = self.cells = 0
    self.stretch = 1
    self.last = self.learned = 0


cdef double times_of(const times_t *self, int32_t rows) noexcept nogil:
    """What steps of so many rows take that follow each other, in seconds."""
    cdef int32_t beyond = rows - MAX_TIMED
    cdef double attending = rows * self.per_cell * self.cells
    if beyond <= 0:
        return self.stretch * (self.seconds[rows] + attending)
    return self.stretch * (
        self.seconds[MAX_TIMED] + attending
        + beyond * (self.seconds[MAX_TIMED] - self.seconds[MAX_TIMED // 2]) / (MAX_TIMED // 2)
    )


cdef double times_with(const times_t *self, int32_t useful, int32_t drafted) noexcept nogil:
    """What the next step takes with so many rows, some of them drafted. Whoever begins to draft, pays for the way
    back too."""
    cdef double seconds = times_of(self, useful + drafted)
    if useful + drafted != self.last:
        seconds += self.change
    if drafted and useful == self.last:
        seconds += self.change
    return seconds


cdef void times_observe(times_t *self, int32_t rows, double seconds) noexcept nogil:
    """A step without prompts took so long. One that was held up by others is believed to a point, and only one of
    another size than the last says something of sizes."""
    cdef double surprise
    cdef int32_t i
    if rows > MAX_TIMED or self.seconds[1] == 0 or self.given:
        return
    surprise = seconds / (times_of(self, rows) + (self.change if rows != self.last else 0))
    surprise = min(max(surprise, 0.5), 2.0)
    self.stretch *= 1 + 0.1 * (surprise - 1)
    if rows == self.learned:
        return
    self.learned = rows
    self.seconds[rows] *= 1 + 0.1 * (surprise - 1)
    # more rows never take less time, nor fewer more
    for i in range(rows + 1, MAX_TIMED + 1):
        if self.seconds[i] >= self.seconds[i - 1]:
            break
        self.seconds[i] = self.seconds[i - 1]
    for i in range(rows - 1, 0, -1):
        if self.seconds[i] <= self.seconds[i + 1]:
            break
        self.seconds[i] = self.seconds[i + 1]
