from libc.stdint cimport int32_t

from .penalties cimport counts_t

# DRY ("don't repeat yourself"): what would prolong a repetition loses multiplier * base ** (length - allowed_length).
cdef struct dry_t:
    int32_t last_n          # 0: off
    int32_t allowed_length
    float multiplier
    float base
    int32_t n_breakers
    int32_t *breaker        # (n_breakers,) first tokens of sequence breakers, ascending
    int32_t *tail           # (n_breakers + 1,) where in tails the rest of each one begins
    int32_t *tails
    int32_t *repeat         # (capacity,)
    int32_t capacity
    counts_t longest        # of each token the longest repetition that it would prolong

cdef int dry_init(dry_t *self, list breakers) except -1
cdef void dry_free(dry_t *self) noexcept nogil
cdef int dry_penalize(dry_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil
