"""Repetition, presence and frequency penalties: how often each token occurs in the last tokens of a history.

The counts follow a history that grows, and that shrinks and changes within its last RECENT tokens.
"""
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef count_t *counts_slot(counts_t *self, int32_t token) noexcept nogil:
    """The token's slot, or the free one where it belongs."""
    cdef uint32_t mask = <uint32_t> self.capacity - 1
    cdef uint32_t at = <uint32_t> token * <uint32_t> 0x9E3779B1
    at = (at ^ at >> 15) & mask
    while self.slots[at].token != token and self.slots[at].token >= 0:
        at = at + 1 & mask
    return &self.slots[at]


cdef int counts_grow(counts_t *self) noexcept nogil:
    """Make room and forget tokens whose count is 0: 0, or -1 when out of memory."""
    cdef counts_t grown = self[0]
    cdef int32_t i
    grown.n_used = 0
    for i in range(self.capacity):
        grown.n_used += self.slots[i].count > 0
    grown.capacity = 64
    while grown.capacity < 4 * grown.n_used:
        grown.capacity *= 2
    grown.slots = <count_t *> malloc(<size_t> grown.capacity * sizeof(count_t))
    if grown.slots == NULL:
        return -1
    memset(grown.slots, 0xFF, <size_t> grown.capacity * sizeof(count_t))
    for i in range(self.capacity):
        if self.slots[i].count > 0:
            counts_slot(&grown, self.slots[i].token)[0] = self.slots[i]
    free(self.slots)
    self[0] = grown
    return 0


cdef count_t *counts_take(counts_t *self, int32_t token) noexcept nogil:
    """The slot of a token of the vocabulary, made where there is none; NULL when out of memory."""
    cdef count_t *slot
    if 2 * (self.n_used + 1) > self.capacity and counts_grow(self) != 0:
        return NULL
    slot = counts_slot(self, token)
    if slot.token < 0:
        slot[0] = count_t(token, 0)
        self.n_used += 1
    return slot


cdef int counts_add(counts_t *self, int32_t token) noexcept nogil:
    """0, or -1 when out of memory."""
    cdef count_t *slot
    if <uint32_t> token >= <uint32_t> self.n_vocab:
        return 0
    slot = counts_take(self, token)
    if slot == NULL:
        return -1
    slot.count += 1
    return 0


cdef void counts_remove(counts_t *self, int32_t token) noexcept nogil:
    if <uint32_t> token < <uint32_t> self.n_vocab:
        counts_slot(self, token).count -= 1


cdef void counts_reset(counts_t *self, int32_t begin) noexcept nogil:
    self.begin = self.end = begin
    self.n_used = 0
    if self.capacity > 0:
        memset(self.slots, 0xFF, <size_t> self.capacity * sizeof(count_t))


cdef int counts_follow(counts_t *self, const int32_t *history, int32_t n_history, int32_t window) noexcept nogil:
    """Count history[-window:], starting from what is counted already: 0, or -1 when out of memory."""
    cdef int32_t begin = max(0, n_history - window)
    cdef int32_t same = max(self.end - RECENT, self.begin)
    cdef int32_t both = min(self.end, n_history)
    cdef int32_t i
    if both < same or begin >= self.end or (same < both and history[same] != self.recent[same % RECENT]):
        counts_reset(self, begin)
        same = both = begin
    while same < both and history[same] == self.recent[same % RECENT]:
        same += 1
    while self.end > same:
        self.end -= 1
        counts_remove(self, self.recent[self.end % RECENT])
    while self.end < n_history:
        if counts_add(self, history[self.end]) != 0:
            return -1
        self.end += 1
    while self.begin > begin:
        if counts_add(self, history[self.begin - 1]) != 0:
            return -1
        self.begin -= 1
    while self.begin < begin:
        counts_remove(self, history[self.begin])
        self.begin += 1
    for i in range(max(self.end - RECENT, begin), self.end):
        self.recent[i % RECENT] = history[i]
    return 0


cdef int penalize(penalties_t *self, float *row, const int32_t *history, int32_t n_history) noexcept nogil:
    """Edit the logits of the tokens in the window: 0, or -1 when out of memory."""
    cdef count_t *slot
    cdef float *logit
    cdef int32_t i
    if counts_follow(&self.counts, history, n_history, self.last_n) != 0:
        counts_reset(&self.counts, 0)
        return -1
    for i in range(self.counts.capacity):
        slot = &self.counts.slots[i]
        if slot.count <= 0:
            continue
        logit = &row[slot.token]
        logit[0] = logit[0] * self.repetition if logit[0] <= 0 else logit[0] / self.repetition
        logit[0] -= <float> slot.count * self.frequency + self.presence
    return 0
