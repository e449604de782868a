"""What followed when the last tokens of a sequence stood there before: in its own text, or in what was predicted."""
from libc.stdint cimport int32_t

from .blocks cimport common_run
from .chains cimport GRAM, chains_find, chains_index, chains_t, match_t
from .draft cimport prediction_t, proposal_t
from .sequence cimport sequence_t


cdef bint lookup_own(sequence_t *s, int32_t most, int32_t *to_index, proposal_t *proposal) noexcept nogil:
    """What followed the last tokens of a sequence when they stood in it before; what was drafted so far goes on the
    text."""
    cdef const int32_t *text = s.tokens.ids
    cdef int32_t n = s.tokens.n_certain
    cdef match_t match
    if index(to_index, &s.draft.own, text, n) < 0:
        return False
    match = chains_find(&s.draft.own, text, text, n, n + s.draft.hint)
    proposal.n = 0
    if match.n == 0:
        return False
    s.draft.hint = match.at - n
    proposal.n_matched = match.n
    proposal.first = match.agreed
    # ids of media are no tokens
    while proposal.n < most:
        proposal.tokens[proposal.n] = (
            text[match.at + proposal.n] if match.at + proposal.n < n else proposal.tokens[match.at + proposal.n - n])
        if proposal.tokens[proposal.n] < 0:
            break
        proposal.n += 1
    return proposal.n > 0


cdef bint lookup_prediction(sequence_t *s, int32_t most, int32_t *to_index, proposal_t *proposal) noexcept nogil:
    """The same in what the client expects, which an answer probably begins with."""
    cdef prediction_t *prediction = &s.draft.prediction
    cdef const int32_t *answer = s.tokens.ids + s.tokens.n_prompt
    cdef int32_t n = s.tokens.n_certain - s.tokens.n_prompt
    cdef match_t match
    proposal.n = 0
    if index(to_index, &prediction.chains, prediction.tokens, prediction.n) < 0:
        return False
    match = chains_find(&prediction.chains, prediction.tokens, answer, n, n + prediction.hint)
    if n < GRAM and n < prediction.n and common_run(answer, prediction.tokens, n) == n:
        match.at = n
        match.n = GRAM
        match.agreed = 1
    if match.n == 0 or match.at >= prediction.n:
        return False
    prediction.at = match.at
    prediction.hint = match.at - n
    proposal.n_matched = match.n
    proposal.first = match.agreed
    while proposal.n < min(most, prediction.n - match.at):
        proposal.tokens[proposal.n] = prediction.tokens[match.at + proposal.n]
        proposal.n += 1
    return True


cdef void lookup_observe(prediction_t *self, const int32_t *came, int32_t n) noexcept nogil:
    """So many tokens came: count those that were expected."""
    cdef int32_t i
    if self.n and self.at >= 0:
        for i in range(min(n, self.n - self.at)):
            if came[i] != self.tokens[self.at + i]:
                break
            self.n_accepted = min(self.n_accepted + 1, self.n)
        self.at = -1


cdef int index(int32_t *to_index, chains_t *chains, const int32_t *text, int32_t n) noexcept nogil:
    """Index what is new of a text, ``to_index`` tokens at most: 0, or -1 when out of memory."""
    cdef int32_t before = chains.n
    if chains_index(chains, text, n, to_index[0]) < 0:
        return -1
    to_index[0] -= chains.n - before
    return 0
