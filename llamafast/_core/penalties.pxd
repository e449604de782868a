# Repetition, presence and frequency penalties, and the counts they rest on.
from libc.stdint cimport int32_t

cdef enum:
    RECENT = 64

cdef struct count_t:
    int32_t token           # -1: a free slot
    int32_t count

# How often each token occurs in history[begin:end]: an open-addressing hash table that follows the history.
cdef struct counts_t:
    count_t *slots          # (capacity,)
    int32_t n_vocab         # other ids are not counted
    int32_t capacity        # a power of two, or 0
    int32_t n_used          # slots that are not free; a count may have fallen to 0
    int32_t begin
    int32_t end
    int32_t recent[RECENT]  # recent[i % RECENT] is what was counted at i, the last RECENT positions before end

cdef struct penalties_t:
    int32_t last_n          # 0: off
    float repetition
    float presence
    float frequency
    counts_t counts

cdef count_t *counts_take(counts_t *self, int32_t token) noexcept nogil
cdef void counts_reset(counts_t *self, int32_t begin) noexcept nogil
cdef int penalize(penalties_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil
