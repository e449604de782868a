"""Which tokens may come next under a grammar, found out in a thread of its own while llama_decode runs.

The engine thread asks (``masker_ask``) as soon as a token is chosen, without the GIL, and where tokens were drafted
(``masker_look_ahead``) as soon as these are in the batch; the Masker's thread walks the grammar with the GIL, which
llguidance lets go of for the long part. Whoever's mask is late keeps its row of logits and sits out the next step
(``constraint_park``). Grammars that were slow before have a lane and a thread of their own, for which no step waits
while others can go on: so a slow grammar slows nobody else.
"""
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .constraint cimport (
    MASK_AHEAD, MASK_ASKED, MASK_NONE, MASK_READY, Constraint, ahead_t, constraint_came, constraint_t, constraint_take,
)
from .headers.atomic cimport shared_load, shared_store
from .headers.clock cimport now
from .headers.pthread cimport (
    monotonic_cond_init, monotonic_cond_wait, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from .pace cimport pace_t


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
        cdef question_t question
        cdef bint idle
        while True:
            with nogil:
                question = masker_take(self, &self.lanes[slow])
            if question.constraint == NULL:
                return
            if question.ahead:
                (<Constraint> question.constraint.owner).look_ahead(&self.pace)
            else:
                (<Constraint> question.constraint.owner).advance(&self.pace)
            idle = masker_answer(self, &question, &self.lanes[slow])
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
        cdef constraint_t *c = &constraint.state
        if shared_load(&c.state) == MASK_ASKED or shared_load(&c.ahead.state) == MASK_ASKED:
            self.held.append(constraint)


cdef int masker_ask(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil:
    """Queue the question what may follow ``token`` (-1: what may come first), or, where it is the ``last`` that there
    may be, only whether the text is complete: 0, or -1 when out of memory."""
    constraint.token = token
    constraint.last = last
    constraint.n_kept = constraint.n_ahead
    constraint.n_ahead = 0
    constraint.forced_came = constraint.ahead.along = False
    # one thread at a time walks: the quick lane's is at it, or about to be
    constraint.lane = shared_load(&constraint.ahead.state) != MASK_ASKED and constraint.slow
    shared_store(&constraint.state, MASK_ASKED)
    if queue(self, &self.lanes[constraint.lane], question_t(constraint, False)) < 0:
        shared_store(&constraint.state, MASK_NONE)
        return -1
    return 0


cdef void masker_look_ahead(Masker self, constraint_t *constraint, const int32_t *draft, int32_t n) noexcept nogil:
    """Queue the question what may follow the ``n`` tokens that were drafted behind what has come, MAX_DRAFT at most.
    Nothing that was asked ahead is open. Without memory it is not asked."""
    cdef ahead_t *ahead = &constraint.ahead
    memcpy(ahead.draft, draft, <size_t> n * sizeof(int32_t))
    ahead.n_draft = n
    ahead.behind_forced = constraint.forced_came
    ahead.n_kept = constraint.n_ahead
    ahead.n_came = ahead.n_followed = 0
    ahead.along = True
    shared_store(&ahead.state, MASK_ASKED)
    if queue(self, &self.lanes[0], question_t(constraint, True)) < 0:
        ahead.along = False
        shared_store(&ahead.state, MASK_NONE)
    else:
        constraint.n_ahead = 0


cdef int masker_follow(Masker self, constraint_t *constraint, int32_t token, bint last) noexcept nogil:
    """``token`` has come, which was sampled: what may follow it was found ahead, or is asked. 0, or -1 when out of
    memory."""
    constraint_came(constraint, token)
    if last or not constraint.ahead.along:
        return masker_ask(self, constraint, token, last)
    constraint.token = token
    shared_store(&constraint.state, MASK_AHEAD)
    return min(masker_answered(self, constraint), 0)


cdef int masker_answered(Masker self, constraint_t *constraint) noexcept nogil:
    """1 where the answer is there, taken from what was found ahead if need be; 0 where it is still to come, which is
    asked for where nothing was found so far ahead; -1 when out of memory."""
    cdef int state = shared_load(&constraint.state)
    if state == MASK_READY:
        return 1
    if state != MASK_AHEAD or shared_load(&constraint.ahead.state) != MASK_READY:
        return 0
    return 1 if constraint_take(constraint) else masker_ask(self, constraint, constraint.token, False)


cdef int queue(Masker self, lane_t *lane, question_t question) noexcept nogil:
    """Put a question behind a lane's others: 0, or -1 when out of memory."""
    cdef question_t *grown
    cdef int32_t i, capacity
    cdef int code = 0
    pthread_mutex_lock(&self.lock)
    if lane.n_queued == lane.capacity:
        capacity = 2 * lane.capacity + 64
        grown = <question_t *> malloc(<size_t> capacity * sizeof(question_t))
        if grown != NULL:
            for i in range(lane.n_queued):
                grown[i] = lane.queue[(lane.first + i) % lane.capacity]
            free(lane.queue)
            lane.queue = grown
            lane.capacity = capacity
            lane.first = 0
    if lane.n_queued < lane.capacity:
        lane.queue[(lane.first + lane.n_queued) % lane.capacity] = question
        lane.n_queued += 1
        lane.n_pending += 1
        pthread_cond_signal(&lane.asked)
    else:
        code = -1
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


cdef question_t masker_take(Masker self, lane_t *lane) noexcept nogil:
    """The lane's next question; one of nobody when closed."""
    cdef question_t question = question_t(NULL, False)
    pthread_mutex_lock(&self.lock)
    while lane.n_queued == 0 and not self.closing:
        pthread_cond_wait(&lane.asked, &self.lock)
    if not self.closing:
        question = lane.queue[lane.first]
        lane.first = (lane.first + 1) % lane.capacity
        lane.n_queued -= 1
    pthread_mutex_unlock(&self.lock)
    return question


cdef bint masker_answer(Masker self, const question_t *question, lane_t *lane) noexcept nogil:
    """Publish an answer; whether no question is left."""
    cdef bint idle
    if question.ahead:
        shared_store(&question.constraint.ahead.state, MASK_READY)
    else:
        shared_store(&question.constraint.state, MASK_READY)
    pthread_mutex_lock(&self.lock)
    lane.n_pending -= 1
    if lane.n_pending == 0:
        pthread_cond_broadcast(&self.done)
    idle = self.lanes[0].n_pending == 0 and self.lanes[1].n_pending == 0
    pthread_mutex_unlock(&self.lock)
    return idle
