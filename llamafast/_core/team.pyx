"""How many threads compute a batch: what was fastest for as many rows, tried again now and then.

More threads than a batch has work for wait for each other at every node of the graph, and where somebody else uses one
of the CPUs all of them wait for the thread that shares it. Neither can be known beforehand, so batches of about as many
rows are timed with the number of threads that was best so far and, some of them, with the next smaller or larger one:
hill climbing on a curve that has one minimum.

Whoever comes to use a CPU does so for batches of all sizes, and some of these are rare, as prompts are beside steps of
one row. So a size of batch that was never seen begins with what is best for the nearest that was, which also tells what
a try may cost, and what becomes far better for a frequent one is taken for rarer ones too.
"""
from libc.stdint cimport int32_t
from libc.string cimport memset

cdef enum:
    # One batch in so many tries a neighbour of the best size, where the time allows.
    TRY_EVERY = 16
    # So often a neighbour is tried before it is judged, at first one batch in two.
    SEEN_ENOUGH = 4
    # So often it says something of batches of other sizes.
    SEEN_A_BIT = 2
    # What was not lost by tries in so many batches may still be lost.
    KEPT_BATCHES = 1024

# Tries of neighbours that are known to be slower may lose this share of the time.
cdef double TRY_SHARE = 0.01
# A size must be so much better, else two that are as good would change places forever.
cdef double BETTER = 0.97
cdef double SURPRISE = 0.8
# So much better it is for batches of other sizes too, of which there were so many times fewer.
cdef double FAR_BETTER = 0.75
cdef int32_t RARER = 4
# A single batch that was held up says little, and is believed up to so many times what was known.
cdef double HELD_UP = 1.5
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
    cdef int32_t bucket = bucket_of(n_rows), best, n = self.n_batches[bucket], side, size
    cdef double known, cost
    cdef bint due
    self.n_batches[bucket] = n + 1
    if n == 0:
        best = nearest(self, bucket, -1, -1)
        if best >= 0:
            self.best[bucket] = self.best[best]
    best = self.best[bucket]
    if self.n_seen[bucket][best] == 0:
        return best
    known = self.cost[bucket][best]
    for side in range(2):
        # smaller first: fewer threads are the better guess where little is known
        size = best - 1 if side == 0 else best + 1
        if not 0 <= size < self.n_sizes:
            continue
        cost = expected(self, bucket, size)
        if cost < BETTER * known:
            due = True
        elif self.n_seen[bucket][size] < SEEN_ENOUGH:
            due = n % 2
        else:
            due = n % TRY_EVERY == TRY_EVERY // 2 * side
        if due and n_rows * (cost - known) <= self.spare[bucket]:
            return size
    return best


cdef void team_observe(team_t *self, int32_t n_rows, int32_t size, double seconds) noexcept nogil:
    cdef int32_t bucket = bucket_of(n_rows), best = self.best[bucket]
    cdef double *cost = &self.cost[bucket][size]
    cdef double row = seconds / n_rows
    # 1 where nothing was known
    cdef double before = cost[0] / self.cost[bucket][best] if self.n_seen[bucket][size] else 1
    if size == best:
        self.spare[bucket] = min(self.spare[bucket] + TRY_SHARE * seconds, KEPT_BATCHES * TRY_SHARE * seconds)
    else:
        self.spare[bucket] -= min(self.spare[bucket], max(0.0, seconds - n_rows * self.cost[bucket][best]))
    if self.n_seen[bucket][size] >= SEEN_ENOUGH:
        if size == best:
            row = min(row, HELD_UP * cost[0])
        elif row < SURPRISE * cost[0]:
            # what was known of it is out of date: it is judged anew
            self.n_seen[bucket][size] = SEEN_ENOUGH - 2
            cost[0] = row
        elif row * SURPRISE > cost[0]:
            # out of date as well: a mean that follows slowly would have it tried again soon
            cost[0] = row
    self.n_seen[bucket][size] += 1
    cost[0] += max(FRESH, 1.0 / self.n_seen[bucket][size]) * (row - cost[0])
    if size == best:
        return
    if self.n_seen[bucket][size] >= SEEN_ENOUGH and cost[0] < BETTER * self.cost[bucket][best]:
        self.best[bucket] = size
    if before >= FAR_BETTER and cost[0] < FAR_BETTER * self.cost[bucket][best]:
        tell(self, bucket, best, size)
    elif before * FAR_BETTER <= 1 and cost[0] * FAR_BETTER > self.cost[bucket][best]:
        tell(self, bucket, size, best)


cdef void tell(team_t *self, int32_t bucket, int32_t worse, int32_t better) noexcept nogil:
    """One size has become far better than another: what was known for rarer batches was before."""
    cdef int32_t other
    for other in range(TEAM_BUCKETS):
        if self.best[other] == worse and RARER * self.n_batches[other] < self.n_batches[bucket]:
            self.best[other] = better
            memset(self.n_seen[other], 0, sizeof(self.n_seen[other]))


cdef double expected(const team_t *self, int32_t bucket, int32_t size) noexcept nogil:
    """Seconds a row with so many threads: what is known, else what the nearest size of batch lets expect. Where that
    knows nothing either, it is no more than with the best."""
    cdef int32_t best = self.best[bucket], other
    if self.n_seen[bucket][size]:
        return self.cost[bucket][size]
    other = nearest(self, bucket, best, size)
    if other < 0:
        return self.cost[bucket][best]
    return self.cost[bucket][best] * self.cost[other][size] / self.cost[other][best]


cdef int32_t nearest(const team_t *self, int32_t bucket, int32_t first, int32_t second) noexcept nogil:
    """The nearest other bucket that has seen enough of two sizes, or where they are -1, of its best; -1: none."""
    cdef int32_t distance, side, other
    for distance in range(1, TEAM_BUCKETS):
        for side in range(2):
            other = bucket - distance if side == 0 else bucket + distance
            if (
                0 <= other < TEAM_BUCKETS
                and self.n_seen[other][self.best[other] if first < 0 else first] >= SEEN_A_BIT
                and self.n_seen[other][self.best[other] if second < 0 else second] >= SEEN_A_BIT
            ):
                return other
    return -1


cdef int32_t bucket_of(int32_t n_rows) noexcept nogil:
    cdef int32_t bucket = 0
    while bucket < TEAM_BUCKETS - 1 and n_rows > 1 << 2 * bucket:
        bucket += 1
    return bucket
