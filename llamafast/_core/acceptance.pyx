"""How likely a drafted token is what comes, learned from all proposals, also from those that no row was spent on."""
from libc.stdint cimport int32_t

# What is believed at first, as if so many tokens had been seen; the longer a match the likelier it goes on.
cdef double BELIEVED = 8
cdef double PRIOR[MATCHES]
PRIOR[:] = [0.15, 0.3, 0.55, 0.75, 0.9, 0.95]
cdef double HEAD_PRIOR = 0.7
# Weight of the past after each token: about the last 200 of a kind count.
cdef double PAST = 0.995


cdef void acceptance_init(acceptance_t *self) noexcept nogil:
    cdef int32_t source, match
    for source in range(MAX_SOURCES):
        for match in range(MATCHES):
            self.tried[source][match] = BELIEVED
            self.taken[source][match] = BELIEVED * (HEAD_PRIOR if source == BY_HEAD else PRIOR[match])


cdef int32_t match_of(int32_t n_matched) noexcept nogil:
    cdef int32_t match = 0
    while n_matched > 1 and match < MATCHES - 1:
        n_matched >>= 1
        match += 1
    return match


cdef double acceptance_chance(const acceptance_t *self, int32_t source, int32_t n_matched) noexcept nogil:
    """That a token comes which a source has proposed behind ``n_matched`` tokens that did."""
    cdef int32_t match = match_of(n_matched)
    return self.taken[source][match] / self.tried[source][match]


cdef void acceptance_observe(acceptance_t *self, int32_t source, int32_t n_matched, bint taken) noexcept nogil:
    cdef int32_t match = match_of(n_matched)
    self.tried[source][match] = self.tried[source][match] * PAST + 1
    self.taken[source][match] = self.taken[source][match] * PAST + taken
