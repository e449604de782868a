# What a sequence's drafts have cost, and what they have saved.
from .draft cimport draft_t

cdef bint ledger_lost(const draft_t *draft) noexcept nogil
cdef bint ledger_proven(const draft_t *draft) noexcept nogil
cdef void ledger_saved(draft_t *draft, double rows) noexcept nogil
