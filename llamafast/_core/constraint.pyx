"""One sequence's walk through a grammar, and how far it is known ahead.

A question is what may follow a token: the tokens that alone may follow, and behind these a mask. Where tokens were
drafted the same is asked behind each of them as long as it is allowed, before anybody knows whether it comes;
llguidance goes back to where the text went on otherwise (``LLMatcher.rollback``). What is found ahead is what would be
found then, or it is not used: a matcher that fails behind drafted tokens is made anew, and one that is slow there is
asked again.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from .headers.atomic cimport shared_load, shared_store
from .headers.clock cimport thread_now
from .leaks cimport CONSTRAINT, born, died
from .pace cimport pace_t
from .vocab cimport tokenizing_seconds

import logging
from array import array

logger = logging.getLogger(__name__)


cdef enum:
    MAX_REASON = 500        # characters of a reason that are logged

# Weight of the newest answer in what one takes.
cdef double NEWEST = 0.2

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
        self.start = matcher
        self.fast_forward = fast_forward
        self.state.owner = <PyObject *> self
        self.state.token = -1
        self.state.n_words = (n_vocab + 31) // 32
        born(CONSTRAINT)

    def __dealloc__(self):
        cdef int32_t i
        if self.state.n_words:
            died(CONSTRAINT)
        free(self.state.answer.mask)
        for i in range(MAX_AHEAD):
            free(self.state.ahead.answers[i].mask)
        free(self.state.row)

    cdef void begin(self) except *:
        """Before the first mask: what only those who run need."""
        make_mask(&self.state.answer, self.state.n_words)
        self.walked = array("i")
        self.matcher = self.start.deep_copy()

    cdef bint take_in(self, int32_t token) except -1:
        """Whether the matcher could; otherwise it has failed."""
        if not self.matcher.consume_token(token):
            return False
        self.walked.append(token)
        return True

    cdef double walk(self, answer_t *answer, double started, double most) except -1:
        """Take in every token that alone may follow, which is looked for as long as ``most`` seconds after ``started``,
        and find out what may follow these. How many seconds the last mask came after ``started``; 0 where there was
        none."""
        cdef double spent = 0
        cdef int32_t token
        matcher = self.matcher
        answer.n_forced = 0
        while not matcher.is_stopped():
            matcher.unsafe_compute_mask_ptr(<size_t> answer.mask, <size_t> self.state.n_words * sizeof(uint32_t))
            spent = thread_seconds() - started
            if not self.fast_forward or answer.n_forced == MAX_FORCED or spent > most:
                break
            token = only_bit(answer.mask, self.state.n_words)
            if token < 0 or not self.take_in(token):
                break
            answer.forced[answer.n_forced] = token
            answer.n_forced += 1
        self.conclude(answer)
        return spent

    cdef void conclude(self, answer_t *answer) except *:
        answer.complete = self.matcher.is_stopped()
        answer.failed = self.matcher.is_error()

    cdef void go_back(self, int32_t n_kept) except *:
        """Of the tokens that were walked through ahead the first ``n_kept`` came, and no others."""
        cdef Py_ssize_t n
        self.n_certain += n_kept
        n = len(self.walked) - self.n_certain
        del self.walked[self.n_certain:]
        if n and not self.broken:
            self.broken = not self.matcher.rollback(n)
        if self.broken:
            matcher = self.start.deep_copy()
            matcher.consume_tokens(self.walked.tolist())
            self.matcher = matcher
            self.broken = False

    cdef void advance(self, const pace_t *pace):
        """Take in what was chosen, then every token that alone may follow, and find out what may follow these."""
        cdef constraint_t *c = &self.state
        cdef double started, spent = 0
        c.answer.n_forced = 0
        try:
            if self.matcher is None:
                self.begin()
            self.go_back(c.n_kept)
            started = thread_seconds()
            if c.token >= 0:
                self.take_in(c.token)
            if c.last:
                self.conclude(&c.answer)
            else:
                spent = self.walk(&c.answer, started, pace.forcing_seconds)
            self.n_certain = len(self.walked)
            c.seconds = spent
            c.slow = spent > pace.slow_mask_seconds
            c.answer.failed = c.answer.failed or spent > pace.mask_limit_seconds
            if c.answer.failed:
                reason = folded(self.matcher.get_error()) or f"a token took {spent:.3f} s"
                logger.warning("a grammar could not be followed: %s", reason)
        except BaseException as error:  # a panic of llguidance's is no Exception, and the mask is the one before
            c.answer.failed = True
            logger.error("a grammar could not be followed: %s: %s", type(error).__name__, folded(str(error)))

    cdef void look_ahead(self, const pace_t *pace):
        """Find out what may follow the tokens of the draft, as far as the grammar allows them and little time is
        spent."""
        cdef ahead_t *ahead = &self.state.ahead
        cdef double started = thread_seconds()
        ahead.n_answers = 0
        try:
            if self.matcher is not None and not self.state.slow:
                self.look(pace)
        except BaseException as error:  # as above; whether the text comes there is not known
            self.broken = True
            logger.warning("a grammar failed behind a draft: %s: %s", type(error).__name__, folded(str(error)))
        ahead.seconds = thread_seconds() - started

    cdef void look(self, const pace_t *pace) except *:
        cdef constraint_t *c = &self.state
        cdef ahead_t *ahead = &c.ahead
        cdef answer_t *answer = &c.answer
        cdef double spent, started = thread_seconds()
        cdef int32_t i = 0
        self.go_back(ahead.n_kept)
        if answer.complete or answer.failed:
            return
        if not ahead.behind_forced:
            i = behind(answer, ahead, 0)
        while 0 <= i < ahead.n_draft and ahead.n_answers < MAX_AHEAD and is_set(answer.mask, ahead.draft[i]):
            answer = &ahead.answers[ahead.n_answers]
            make_mask(answer, c.n_words)
            if not self.take_in(ahead.draft[i]):
                self.broken = True
                break
            spent = self.walk(answer, started, pace.slow_mask_seconds)
            if answer.failed:
                self.broken = True
                break
            if spent > pace.slow_mask_seconds:
                # what alone may follow it is perhaps not all found
                break
            ahead.n_answers += 1
            if answer.complete:
                break
            i = behind(answer, ahead, i + 1)


cdef void make_mask(answer_t *answer, int32_t n_words) except *:
    if answer.mask == NULL:
        answer.mask = <uint32_t *> calloc(<size_t> n_words, sizeof(uint32_t))
        if answer.mask == NULL:
            raise MemoryError


cdef int32_t behind(const answer_t *answer, const ahead_t *ahead, int32_t i) noexcept nogil:
    """Where the draft goes on behind the forced tokens of an answer, which its tokens from ``i`` on are; -1 where it
    has others, or ends before."""
    cdef int32_t k
    for k in range(answer.n_forced):
        if i + k >= ahead.n_draft or ahead.draft[i + k] != answer.forced[k]:
            return -1
    return i + answer.n_forced


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


cdef bint is_set(const uint32_t *words, int32_t token) noexcept nogil:
    return words[token >> 5] >> (token & 31) & 1


cdef bint constraint_ready(constraint_t *self) noexcept nogil:
    """Whether the next row can be dealt with: its answer is there, or was asked ahead and has come, or is to be asked
    for."""
    cdef int state = shared_load(&self.state)
    return state == MASK_READY or (state == MASK_AHEAD and shared_load(&self.ahead.state) == MASK_READY)


cdef bint constraint_in_time(constraint_t *self) noexcept nogil:
    """Whether nothing that was asked is still open."""
    return constraint_ready(self) and shared_load(&self.ahead.state) != MASK_ASKED


cdef int constraint_park(constraint_t *self, const float *row, int32_t n_vocab) noexcept nogil:
    """Keep a row of logits until the mask is there: 0, or -1 when out of memory."""
    if self.row == NULL:
        self.row = <float *> malloc(<size_t> n_vocab * sizeof(float))
        if self.row == NULL:
            return -1
    memcpy(self.row, row, <size_t> n_vocab * sizeof(float))
    return 0


cdef void constraint_came(constraint_t *self, int32_t token) noexcept nogil:
    """A token came: whether it is what was walked through ahead."""
    cdef ahead_t *ahead = &self.ahead
    if ahead.along and ahead.n_came < ahead.n_draft and ahead.draft[ahead.n_came] == token:
        ahead.n_came += 1
    else:
        ahead.along = False


cdef bint constraint_take(constraint_t *self) noexcept nogil:
    """Make what was found ahead the answer: False where nothing was found so far ahead. The draft has come that far,
    and nobody is asked."""
    cdef ahead_t *ahead = &self.ahead
    cdef answer_t before = self.answer
    if ahead.n_followed == ahead.n_answers:
        return False
    self.answer = ahead.answers[ahead.n_followed]
    ahead.answers[ahead.n_followed] = before
    ahead.n_followed += 1
    self.n_ahead += 1 + self.answer.n_forced
    self.seconds = ahead.seconds / ahead.n_answers
    self.forced_came = False
    shared_store(&self.state, MASK_READY)
    return True


cdef bint constraint_looks_ahead(constraint_t *self) noexcept nogil:
    """Whether its grammar may be walked through drafted tokens beside the next step: it is none of the slow ones, and
    the text goes on."""
    cdef int state = shared_load(&self.state)
    if self.lane or shared_load(&self.ahead.state) == MASK_ASKED:
        return False
    if state == MASK_READY:
        return not self.slow and not self.answer.failed and not self.answer.complete
    return state == MASK_ASKED


cdef int32_t constraint_allows(constraint_t *self, const int32_t *tokens, int32_t n) noexcept nogil:
    """How many of the next ``n`` tokens may come, as far as it is known by now."""
    cdef int32_t i = 0
    if shared_load(&self.state) != MASK_READY:
        return n
    if not self.forced_came:
        for i in range(self.answer.n_forced):
            if i == n or tokens[i] != self.answer.forced[i]:
                return i
        i = self.answer.n_forced
    return n if i >= n or is_set(self.answer.mask, tokens[i]) else i


cdef double constraint_share(const constraint_t *self) noexcept nogil:
    """Of its tokens those that are sampled. The others come without a step of their own in any case."""
    return (self.n_chosen + 1) / <double> (self.n_chosen + self.n_left + 1)


cdef void constraint_chose(constraint_t *self) noexcept nogil:
    """A token was sampled under its mask. Where nothing was found ahead, be it that it took too long, that counts with
    it: else a grammar that is slow only there would be asked again and again."""
    cdef ahead_t *ahead = &self.ahead
    cdef double seconds = self.seconds
    self.n_chosen += 1
    if self.mask_seconds == 0:
        self.mask_seconds = self.seconds
    if shared_load(&ahead.state) == MASK_READY and ahead.n_answers == 0:
        seconds += ahead.seconds
        ahead.seconds = 0
    self.mask_seconds += NEWEST * (seconds - self.mask_seconds)
