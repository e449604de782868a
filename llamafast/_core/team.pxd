# How many threads compute a batch, learned from the batches there were.
from libc.stdint cimport int32_t

cdef enum:
    TEAM_SIZES = 12         # numbers of threads that are tried
    TEAM_BUCKETS = 7        # of rows: 1, up to 4, up to 16, up to 64, ...

# Zeroed, it chooses nothing.
cdef struct team_t:
    int32_t n_sizes                             # 0: nothing is chosen
    int32_t sizes[TEAM_SIZES]                   # threads, ascending
    int32_t best[TEAM_BUCKETS]                  # of the sizes, by its index
    int32_t n_batches[TEAM_BUCKETS]
    int32_t n_seen[TEAM_BUCKETS][TEAM_SIZES]
    double spare[TEAM_BUCKETS]                  # seconds that tries may lose
    double cost[TEAM_BUCKETS][TEAM_SIZES]       # seconds a row, of the recent batches

cdef void team_init(team_t *self, int32_t n_threads) noexcept nogil
cdef int32_t team_choose(team_t *self, int32_t n_rows) noexcept nogil  # an index of sizes
cdef void team_observe(team_t *self, int32_t n_rows, int32_t size, double seconds) noexcept nogil
