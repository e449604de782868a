"""How many threads compute a batch: what was fastest for as many rows, tried again now and then.

More threads than a batch has work for wait for each other at every node of the graph, and where somebody else uses one
of the CPUs all of them wait for the thread that shares it. Neither can be known beforehand, so batches of about as many
rows are timed with the number of threads that was best so far and, some of them, with the next smaller or larger one:
hill climbing on a curve that has one minimum.
"""
from libc.stdint cimport int32_t
from libc.string cimport memset

cdef enum:
    # One batch in so many tries a neighbour of the best size, where the time allows.
    TRY_EVERY = 16
    # So often a neighbour is tried before it is judged, at first one batch in two.
    SEEN_ENOUGH = 4
    # What was not lost by tries in so many batches may still be lost.
    KEPT_BATCHES = 256

# Tries of neighbours that are known to be slower may lose this share of the time.
cdef double TRY_SHARE = 0.02
# A size must be so much better, else two that are as good would change places forever.
cdef double BETTER = 0.97
cdef double SURPRISE = 0.8
# Weight of a new batch in a size's cost.
cdef double FRESH = 0.2


cdef void team_init(team_t *self, int32_t n_threads) noexcept nogil:
    """Up to ``n_threads``: powers of 2, the number itself, and what lies between the last two of them, none within a
    quarter of the next: so little is hard to tell."""
    cdef int32_t bucket, size = 1
    memset(self, 0, sizeof(team_t))
    while 5 * size <= 4 * n_threads and self.n_sizes < TEAM_SIZES - 2:
        self.sizes[self.n_sizes] = size
        self.n_sizes += 1
        if size >= 4 and n_threads <= 2 * size + 1 and 15 * size <= 8 * n_threads:
            self.sizes[self.n_sizes] = size + size // 2
            self.n_sizes += 1
        size *= 2
    self.sizes[self.n_sizes] = n_threads
    self.n_sizes += 1
    for bucket in range(TEAM_BUCKETS):
        self.best[bucket] = self.n_sizes - 1


cdef int32_t team_choose(team_t *self, int32_t n_rows) noexcept nogil:
    cdef int32_t bucket = bucket_of(n_rows), best = self.best[bucket]
    cdef int32_t n = self.n_batches[bucket], side, size
    cdef double known = self.cost[bucket][best]
    self.n_batches[bucket] = n + 1
    if self.n_seen[bucket][best] == 0:
        return best
    for side in range(2):
        # smaller first: fewer threads are the better guess where little is known
        size = best - 1 if side == 0 else best + 1
        if not 0 <= size < self.n_sizes:
            continue
        if self.n_seen[bucket][size] < SEEN_ENOUGH:
            if n % 2:
                return size
        elif n % TRY_EVERY == TRY_EVERY // 2 * side:
            if n_rows * (self.cost[bucket][size] - known) <= self.spare[bucket]:
                return size
    return best


cdef void team_observe(team_t *self, int32_t n_rows, int32_t size, double seconds) noexcept nogil:
    cdef int32_t bucket = bucket_of(n_rows), best = self.best[bucket]
    cdef double *cost = &self.cost[bucket][size]
    cdef double row = seconds / n_rows
    if size == best:
        self.spare[bucket] = min(self.spare[bucket] + TRY_SHARE * seconds, KEPT_BATCHES * TRY_SHARE * seconds)
    else:
        self.spare[bucket] -= min(self.spare[bucket], max(0.0, seconds - n_rows * self.cost[bucket][best]))
    if size != best and self.n_seen[bucket][size] >= SEEN_ENOUGH and row < SURPRISE * cost[0]:
        # what was known of it is out of date: it is judged anew
        self.n_seen[bucket][size] = SEEN_ENOUGH - 2
        cost[0] = row
    elif size != best and self.n_seen[bucket][size] >= SEEN_ENOUGH and row * SURPRISE > cost[0]:
        # out of date as well: a mean that follows slowly would have it tried again soon
        cost[0] = row
    cost[0] = cost[0] + FRESH * (row - cost[0]) if self.n_seen[bucket][size] else row
    self.n_seen[bucket][size] += 1
    if size != best and self.n_seen[bucket][size] >= SEEN_ENOUGH and cost[0] < BETTER * self.cost[bucket][best]:
        self.best[bucket] = size


cdef int32_t bucket_of(int32_t n_rows) noexcept nogil:
    cdef int32_t bucket = 0
    while bucket < TEAM_BUCKETS - 1 and n_rows > 1 << 2 * bucket:
        bucket += 1
    return bucket
