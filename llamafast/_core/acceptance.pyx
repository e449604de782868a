"""How likely a drafted token is what comes, learned from all proposals, also from those that no row was spent on."""
from libc.stdint cimport int32_t

from .draft cimport draft_t, proposal_t

# What is believed at first, as if so many tokens had been seen; the longer a match the likelier it goes on.
cdef double BELIEVED = 8
cdef double PRIOR[MATCHES]
PRIOR[:] = [0.15, 0.3, 0.55, 0.75, 0.9, 0.95]
cdef double MODEL_PRIOR = 0.7
# Weight of the past after each token: about the last 200 of a kind count.
cdef double PAST = 0.995
# Of so many tokens that a source has proposed for a sequence so many are taken for right before any has come: its own
# proposals, decoded or not, are what speaks for the next ones.
cdef double DOUBTED = 2
cdef double GRANTED = 1
# The same of a sequence's own: about the last ten count.
cdef double OWN_PAST = 0.9
# A token that is less likely is not worth a look.
cdef double LEAST_CHANCE = 0.01


cdef void acceptance_init(acceptance_t *self) noexcept nogil:
    cdef int32_t source, match
    for source in range(MAX_SOURCES):
        for match in range(MATCHES):
            self.tried[source][match] = BELIEVED
            self.taken[source][match] = BELIEVED * (MODEL_PRIOR if source >= BY_MODELS else PRIOR[match])


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


cdef void observe(acceptance_t *self, int32_t source, int32_t n_matched, bint taken) noexcept nogil:
    cdef int32_t match = match_of(n_matched)
    self.tried[source][match] = self.tried[source][match] * PAST + 1
    self.taken[source][match] = self.taken[source][match] * PAST + taken


cdef double acceptance_trust(const draft_t *draft, int32_t source) noexcept nogil:
    """How far a sequence's own proposals have been as good as others', at most 1. Nothing can be seen of a model that
    drafts before it is asked: it is trusted until it was wrong."""
    cdef double granted = DOUBTED if source >= BY_MODELS else GRANTED
    return min(1.0, (draft.hits + granted) / (draft.expected + DOUBTED))


cdef double acceptance_rate(const acceptance_t *self, draft_t *draft, int32_t source, bint whole) noexcept nogil:
    """Give the tokens of a sequence's proposal, which is this source's, their chances, and leave out those, but for a
    ``whole`` one, that are too unlikely; how many tokens probably come of it."""
    cdef proposal_t *proposal = &draft.proposal
    cdef double trust = acceptance_trust(draft, source)
    cdef double chance = proposal.first, total = 0
    cdef int32_t i
    draft.source = source
    for i in range(proposal.n):
        chance *= trust * acceptance_chance(self, source, proposal.n_matched + i)
        draft.survival[i] = <float> chance
        total += chance
        if chance < LEAST_CHANCE and not whole:
            proposal.n = i
            break
    return total


cdef void acceptance_prefer(
    const acceptance_t *self, draft_t *draft, int32_t source, const proposal_t *other
) noexcept nogil:
    """Let another source's proposal be the sequence's where more tokens come of it."""
    cdef draft_t before = draft[0]
    cdef double promised = 0
    cdef int32_t i
    for i in range(before.proposal.n):
        promised += before.survival[i]
    draft.proposal = other[0]
    if acceptance_rate(self, draft, source, False) <= promised:
        draft[0] = before


cdef int32_t acceptance_learn(acceptance_t *self, draft_t *draft, const int32_t *came, int32_t n) noexcept nogil:
    """``n`` tokens came: compare them with the proposal, decoded or not. How many of its tokens they are."""
    cdef proposal_t *proposal = &draft.proposal
    cdef int32_t i
    cdef bint taken
    if proposal.n == 0:
        draft.in_a_row = 0
    for i in range(min(proposal.n, n)):
        taken = proposal.tokens[i] == came[i]
        observe(self, draft.source, proposal.n_matched + i, taken)
        draft.expected = draft.expected * OWN_PAST + draft.survival[i] / (draft.survival[i - 1] if i else 1.0)
        draft.hits = draft.hits * OWN_PAST + taken
        draft.in_a_row = draft.in_a_row + 1 if taken else 0
        if not taken:
            return i
    return max(0, min(proposal.n, n))
