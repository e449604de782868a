# The penalty DRY: its parameters and its breakers.
from libc.stdint cimport int32_t

from .penalties cimport counts_t

# What repetitions do not reach back over. Entries are in ascending order of their first tokens.
cdef struct breakers_t:
    int32_t n
    int32_t *token          # (n,) first tokens
    int32_t *tail           # (n + 1,) where in tails the tokens after the first one begin
    int32_t *tails

# DRY ("don't repeat yourself"): what would prolong a repetition loses multiplier * base ** (length - allowed_length).
cdef struct dry_t:
    int32_t last_n          # 0: off
    int32_t allowed_length
    float multiplier
    float base
    const breakers_t *breakers
    int32_t *repeat         # (capacity,)
    int32_t capacity
    counts_t longest        # of each token the longest repetition that it would prolong

cdef class Breakers:
    cdef breakers_t table

cdef void dry_free(dry_t *self) noexcept nogil
cdef int dry_penalize(dry_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil
