# A small model of the same vocabulary that drafts.
from libc.stdint cimport int32_t, int64_t

from .context cimport Context
from .proposer cimport Proposer

# What its memory has under a sequence id.
cdef struct held_t:
    int64_t tag             # whose it is
    int32_t n_runs          # as that one's; 0: nobody's
    int32_t *ids            # (capacity,) tokens in memory
    int32_t capacity
    int32_t n               # -1: it has some that are not known
    int32_t n_same          # so many of them are known to be the sequence's
    int32_t lender          # whose first n_borrowed cells it has beside its own, -1: nobody's
    int32_t n_borrowed
    char *salt              # (n_salt,) bytes: who has another one is given nothing of it
    Py_ssize_t n_salt
    bint barred             # it has a token that only the served model knows

cdef class DraftModel(Proposer):
    cdef Context own
    cdef held_t *held           # (n_seq_max,)
    cdef bint cuttable          # its memory forgets single tokens
    cdef int32_t n_cells
    cdef int32_t n_known        # tokens of its vocabulary
    cdef int32_t resting        # steps for which nobody is drafted for, after a call that failed
