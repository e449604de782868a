"""Which tokens may come next under a grammar, found out in a thread of its own while llama_decode runs.

The engine thread asks (``masker_ask``) as soon as a token is chosen, without the GIL; the Masker's thread walks the
grammar with the GIL, which llguidance lets go of for the long part. Whoever's mask is late keeps its row of logits and
sits out the next step (``constraint_park``). Grammars that were slow before have a lane and a thread of their own, for
which no step waits while others can go on: so a slow grammar slows nobody else.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from .headers.atomic cimport shared_load, shared_store
from .headers.clock cimport now, thread_now
from .headers.pthread cimport (
    monotonic_cond_init, monotonic_cond_wait, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from .leaks cimport CONSTRAINT, born, died
from .pace cimport pace_t
from .vocab cimport tokenizing_seconds

import logging

logger = logging.getLogger(__name__)


cdef enum:
    MAX_REASON = 500        # characters of a reason that are logged

cdef extern from *:
    int __builtin_ctz(unsigned int bits) noexcept nogil


cdef class Constraint:
    """One sequence's walk through a grammar.

    ``matcher`` has llguidance.LLMatcher's methods, is at its start and is only copied, by the thread that computes the
    first mask: making thousands of Constraints costs next to nothing. With ``fast_forward`` tokens that the grammar
    leaves no choice about are taken without sampling.
    """

    def __cinit__(self, matcher not None, int32_t n_vocab, *, bint fast_forward=True):
        if n_vocab < 1:
            raise ValueError(f"n_vocab is {n_vocab}: expected at least 1")
        self.matcher = matcher
        self.fast_forward = fast_forward
        self.state.owner = <PyObject *> self
        self.state.token = -1
        self.state.n_words = (n_vocab + 31) // 32
        born(CONSTRAINT)

    def __dealloc__(self):
        if self.state.n_words:
            died(CONSTRAINT)
        free(self.state.mask)
        free(self.state.row)

    cdef void begin(self) except *:
        """Before the first mask: what only those who run need."""
        self.state.mask = <uint32_t *> calloc(<size_t> self.state.n_words, sizeof(uint32_t))
        if self.state.mask == NULL:
            raise MemoryError
        self.matcher = self.matcher.deep_copy()

    cdef void advance(self, const pace_t *pace):
        """Take in what was chosen, then every token that alone may follow, and find out what may follow these."""
        cdef constraint_t *c = &self.state
        cdef int32_t token = c.token
        cdef double started, spent = 0
        c.n_forced = 0
        try:
            if c.mask == NULL:
                self.begin()
            matcher = self.matcher
            started = thread_seconds()
            if token >= 0:
                matcher.consume_token(token)
            while not c.last and not matcher.is_stopped():
                matcher.unsafe_compute_mask_ptr(<size_t> c.mask, <size_t> c.n_words * sizeof(uint32_t))
                spent = thread_seconds() - started
                if not self.fast_forward or c.n_forced == MAX_FORCED or spent > pace.forcing_seconds:
                    break
                token = only_bit(c.mask, c.n_words)
                if token < 0 or not matcher.consume_token(token):
                    break
                c.forced[c.n_forced] = token
                c.n_forced += 1
            c.slow = spent > pace.slow_mask_seconds
            c.complete = matcher.is_stopped()
            c.failed = matcher.is_error() or spent > pace.mask_limit_seconds
            if c.failed:
                reason = folded(matcher.get_error()) or f"a token took {spent:.3f} s"
                logger.warning("a grammar could not be followed: %s", reason)
        except BaseException as error:  # a panic of llguidance's is no Exception, and the mask is the one before
            c.failed = True
            logger.error("a grammar could not be followed: %s: %s", type(error).__name__, folded(str(error)))


cdef str folded(str reason):
    """One line: the reason may quote a client's text."""
    return " ".join(reason[:MAX_REASON].split())


cdef double thread_seconds() noexcept nogil:
    """CPU time of this thread, and what others spent for it."""
    return thread_now() + tokenizing_seconds()


cdef int32_t only_bit(const uint32_t *words, int32_t n_words) noexcept nogil:
    """The index of the bit that is set, -1 where none or several are."""
    cdef int32_t i, found = -1
    for i in range(n_words):
        if words[i] == 0:
            continue
        if found >= 0 or words[i] & (words[i] - 1):
            return -1
        found = i
    return -1 if found < 0 else 32 * found + __builtin_ctz(words[found])


cdef bint constraint_ready(constraint_t *self) noexcept nogil:
    """Whether mask, forced, complete and failed are up to date."""
    return shared_load(&self.state) == MASK_READY


cdef int constraint_park(constraint_t *self, const float *row, int32_t n_vocab) noexcept nogil:
    """Keep a row of logits until the mask is there: 0, or -1 when out of memory."""
    if self.row == NULL:
        self.row = <float *> malloc(<size_t> n_vocab * sizeof(float))
        if self.row == NULL:
            return -1
    memcpy(self.row, row, <size_t> n_vocab * sizeof(float))
    return 0


cdef class Masker:
    """The threads that compute masks: whoever made this runs ``run`` in two of them, and ``close`` ends both."""

    def __cinit__(self, pace_t pace):
        cdef int i
        self.pace = pace
        self.held = []
        pthread_mutex_init(&self.lock, NULL)
        monotonic_cond_init(&self.done)
        for i in range(2):
            pthread_cond_init(&self.lanes[i].asked, NULL)
        self.ready = True

    def __dealloc__(self):
        cdef int i
        for i in range(2):
            free(self.lanes[i].queue)
            if self.ready:
                pthread_cond_destroy(&self.lanes[i].asked)
        if self.ready:
            pthread_cond_destroy(&self.done)
            pthread_mutex_destroy(&self.lock)

    def run(self, *, bint slow=False):
        """Answer the questions of one lane until ``close``."""
        cdef constraint_t *constraint
        cdef bint idle
        while True:
            with nogil:
                constraint = masker_take(self, &self.lanes[slow])
            if constraint == NULL:
                return
            (<Constraint> constraint.owner).advance(&self.pace)
            idle = masker_answer(self, constraint)
            if idle:
                self.held.clear()

    def close(self):
        """Any thread: ``run`` returns after what it is doing."""
        cdef int i
        pthread_mutex_lock(&self.lock)
        self.closing = True
        for i in range(2):
            pthread_cond_broadcast(&self.lanes[i].asked)
        pthread_mutex_unlock(&self.lock)

    cdef void hold(self, Constraint constraint):
        """Keep a Constraint that its sequence lets go of alive as long as a thread may work on it."""
        if shared_load(&constraint.state.state) == MASK_ASKED:
            self.held.append(constraint)


cdef int masker_ask(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil:
    """Queue the question what may follow ``token`` (-1: what may come first), or, where it is the ``last`` that there
    may be, only whether the text is complete: 0, or -1 when out of memory."""
    cdef lane_t *lane = &self.lanes[constraint.slow]
    cdef constraint_t **grown
    cdef int32_t i, capacity
    cdef int code = 0
    constraint.token = token
    constraint.last = last
    constraint.lane = constraint.slow
    shared_store(&constraint.state, MASK_ASKED)
    pthread_mutex_lock(&self.lock)
    if lane.n_queued == lane.capacity:
        capacity = 2 * lane.capacity + 64
        grown = <constraint_t **> malloc(<size_t> capacity * sizeof(constraint_t *))
        if grown != NULL:
            for i in range(lane.n_queued):
                grown[i] = lane.queue[(lane.first + i) % lane.capacity]
            free(lane.queue)
            lane.queue = grown
            lane.capacity = capacity
            lane.first = 0
    if lane.n_queued < lane.capacity:
        lane.queue[(lane.first + lane.n_queued) % lane.capacity] = constraint
        lane.n_queued += 1
        lane.n_pending += 1
        pthread_cond_signal(&lane.asked)
    else:
        code = -1
        shared_store(&constraint.state, MASK_NONE)
    pthread_mutex_unlock(&self.lock)
    return code


cdef void masker_wait(Masker self, double seconds) noexcept nogil:
    """Return when the quick lane's questions are all answered, where it has none the slow one's, or after ``seconds``.
    """
    cdef double until = now() + seconds
    cdef lane_t *lane
    pthread_mutex_lock(&self.lock)
    lane = &self.lanes[self.lanes[0].n_pending == 0]
    while lane.n_pending and monotonic_cond_wait(&self.done, &self.lock, until - now()) == 0:
        pass
    pthread_mutex_unlock(&self.lock)


cdef constraint_t *masker_take(Masker self, lane_t *lane) noexcept nogil:
    """The lane's next question; NULL when closed."""
    cdef constraint_t *constraint = NULL
    pthread_mutex_lock(&self.lock)
    while lane.n_queued == 0 and not self.closing:
        pthread_cond_wait(&lane.asked, &self.lock)
    if not self.closing:
        constraint = lane.queue[lane.first]
        lane.first = (lane.first + 1) % lane.capacity
        lane.n_queued -= 1
    pthread_mutex_unlock(&self.lock)
    return constraint


cdef bint masker_answer(Masker self, constraint_t *constraint) noexcept nogil:
    """Publish an answer; whether no question is left."""
    cdef bint idle
    cdef lane_t *lane = &self.lanes[constraint.lane]
    shared_store(&constraint.state, MASK_READY)
    pthread_mutex_lock(&self.lock)
    lane.n_pending -= 1
    if lane.n_pending == 0:
        pthread_cond_broadcast(&self.done)
    idle = self.lanes[0].n_pending == 0 and self.lanes[1].n_pending == 0
    pthread_mutex_unlock(&self.lock)
    return idle
