"""The ledger of a sequence's drafts, in rows: it bounds what they lose, whatever their chances are taken for."""
from libc.stdint cimport int32_t

from .draft cimport draft_t

# Rows that a sequence's drafts may cost before they have saved any, the share of all its rows that they may, and the
# most that what they have saved counts later.
cdef double CREDIT = 0.5
cdef double SHARE = 0.005
cdef double MOST_SAVED = 20
# Until so many tokens of its proposals came in a row, or its drafts have saved so much, a sequence's make a step but
# little longer; and as many tokens as came in a row, what was looked up is believed to go on.
cdef int32_t PROVEN_IN_A_ROW = 8
cdef double PROVEN = 4


cdef bint ledger_lost(const draft_t *draft) noexcept nogil:
    """Whether they have cost more than they may."""
    return draft.balance + CREDIT < -SHARE * draft.rows


cdef bint ledger_proven(const draft_t *draft) noexcept nogil:
    """Whether they are known to come, so well that a step may take longer for them."""
    return draft.in_a_row >= PROVEN_IN_A_ROW or draft.balance >= PROVEN


cdef void ledger_saved(draft_t *draft, double rows) noexcept nogil:
    """They have saved so many rows, all in all; below 0: they have cost them."""
    draft.balance = min(draft.balance + rows, MOST_SAVED)
