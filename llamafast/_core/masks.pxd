# A sequence's walk through a grammar, and the threads that find out what may come next.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint32_t

from .headers.pthread cimport pthread_cond_t, pthread_mutex_t
from .pace cimport pace_t

cdef enum:
    # states of a constraint's mask; only the Masker's thread leaves MASK_ASKED
    MASK_NONE = 0
    MASK_ASKED = 1
    MASK_READY = 2
    MAX_FORCED = 64

cdef struct constraint_t:
    PyObject *owner         # its Constraint, not counted
    int state               # atomic
    int32_t token           # what was chosen last and is to be taken in, -1: nothing yet
    bint last               # no token can follow it: whether the text is complete is all that is asked
    uint32_t *mask          # (n_words,) bit t says that token t may come next; NULL before the first answer
    int32_t n_words
    int32_t n_forced        # tokens that can only come next, taken in already; the mask is what may follow them
    int32_t forced[MAX_FORCED]
    bint complete           # after them nothing may follow
    bint failed             # the grammar cannot be followed any further
    bint slow               # what was chosen last took slow_mask_seconds or more: the slow lane answers next
    bint lane               # which lane was asked
    float *row              # (n_vocab,) logits that wait for the mask, where its sequence is parked

cdef class Constraint:
    cdef constraint_t state
    cdef object matcher
    cdef bint fast_forward
    cdef void begin(self) except *
    cdef void advance(self, const pace_t *pace)

cdef struct lane_t:
    pthread_cond_t asked
    constraint_t **queue                # (capacity,) a ring
    int32_t capacity
    int32_t first
    int32_t n_queued
    int32_t n_pending                   # queued or being worked on

cdef class Masker:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t done
    cdef bint ready                     # lock and conditions exist
    cdef bint closing
    cdef pace_t pace
    cdef lane_t lanes[2]                # the quick and the slow one
    cdef list held                      # Constraints that were given up while the thread may work on them

    cdef void hold(self, Constraint constraint)

cdef bint constraint_ready(constraint_t *self) noexcept nogil
cdef int constraint_park(constraint_t *self, const float *row, int32_t n_vocab) noexcept nogil
cdef int masker_ask(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil
cdef void masker_wait(Masker self, double seconds) noexcept nogil
