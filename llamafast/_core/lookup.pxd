# What followed in a text when the last tokens of a sequence stood there before.
from libc.stdint cimport int32_t

from .draft cimport prediction_t, proposal_t
from .sequence cimport sequence_t

# Each fills a proposal of up to ``most`` tokens, False: there is none. So many tokens as ``to_index`` may be indexed on
# the way, and it goes down by those that are.
cdef bint lookup_own(sequence_t *s, int32_t most, int32_t *to_index, proposal_t *proposal) noexcept nogil
cdef bint lookup_prediction(sequence_t *s, int32_t most, int32_t *to_index, proposal_t *proposal) noexcept nogil
cdef void lookup_observe(prediction_t *self, const int32_t *came, int32_t n) noexcept nogil
