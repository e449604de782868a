# The threads that find out what may come next, and what they are asked.
from libc.stdint cimport int32_t

from .constraint cimport Constraint, constraint_t
from .headers.pthread cimport pthread_cond_t, pthread_mutex_t
from .pace cimport pace_t

# Asked for: what may follow a token, or what may follow drafted ones.
cdef struct question_t:
    constraint_t *constraint
    bint ahead

cdef struct lane_t:
    pthread_cond_t asked
    question_t *queue                   # (capacity,) a ring
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

cdef int masker_ask(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil
cdef void masker_look_ahead(Masker self, constraint_t *constraint, const int32_t *draft, int32_t n) noexcept nogil
cdef int masker_follow(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil
cdef int masker_answered(Masker self, constraint_t *constraint) noexcept nogil
cdef void masker_wait(Masker self, double seconds) noexcept nogil
