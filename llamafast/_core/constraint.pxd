# A sequence's walk through a grammar: what may come next, and what behind tokens that were drafted.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint32_t

from .draft cimport MAX_DRAFT
from .pace cimport pace_t

cdef enum:
    # states of a question; only a thread of the Masker's leaves MASK_ASKED
    MASK_NONE = 0
    MASK_ASKED = 1
    MASK_READY = 2
    MASK_AHEAD = 3          # what was asked ahead answers it
    MAX_FORCED = 64
    MAX_AHEAD = 8

# What may follow a token.
cdef struct answer_t:
    uint32_t *mask          # (n_words,) bit t says that token t may come next; NULL before the first answer
    int32_t n_forced        # tokens that can only come next, taken in already; the mask is what may follow them
    int32_t forced[MAX_FORCED]
    bint complete           # after them nothing may follow
    bint failed             # the grammar cannot be followed any further

# What may follow drafted tokens, asked before anybody knows whether these come. While ``state`` is MASK_ASKED the
# thread that walks owns ``answers``, ``n_answers`` and ``seconds``, and reads the draft; else all is the engine's.
cdef struct ahead_t:
    int state               # atomic
    int32_t draft[MAX_DRAFT]
    int32_t n_draft
    bint behind_forced      # the draft goes on behind the answer's forced tokens, else behind the token before them
    int32_t n_kept          # as the question's
    int32_t n_came          # tokens of the draft that came; the engine's at all times, as the next two
    bint along              # nothing else has come
    int32_t n_followed      # answers that were taken
    answer_t answers[MAX_AHEAD]     # one for each token of the draft that is no forced one, as far as these are allowed
    int32_t n_answers
    double seconds          # CPU time that they took

cdef struct constraint_t:
    PyObject *owner         # its Constraint, not counted
    int32_t n_words
    int state               # atomic
    int32_t token           # what was chosen last and is to be taken in, -1: nothing yet
    bint last               # no token can follow it: whether the text is complete is all that is asked
    int32_t n_kept          # of the tokens that were walked through ahead before it so many have come
    bint lane               # which lane was asked
    answer_t answer
    bint slow               # what was chosen last took slow_mask_seconds or more: the slow lane answers next
    double seconds          # CPU time of the answer
    # the engine's
    bint forced_came        # the answer's forced tokens are in the text
    int32_t n_ahead         # tokens that were walked through ahead since the last question and have come
    double mask_seconds     # CPU time of an answer, a mean of the last ones
    int32_t n_chosen        # tokens that were sampled
    int32_t n_left          # and those that left no choice
    float *row              # (n_vocab,) logits that wait for the mask, where its sequence is parked
    ahead_t ahead

cdef class Constraint:
    cdef constraint_t state
    cdef object start           # a matcher at its start, others' too
    cdef object matcher         # its own, None before the first question
    cdef object walked          # array('i') of the tokens that the matcher has taken in
    cdef Py_ssize_t n_certain   # of these, those that have come; the others were drafted
    cdef bint broken            # the matcher failed behind drafted tokens
    cdef bint fast_forward
    cdef void begin(self) except *
    cdef bint take_in(self, int32_t token) except -1
    cdef double walk(self, answer_t *answer, double started, double most) except -1
    cdef void conclude(self, answer_t *answer) except *
    cdef void go_back(self, int32_t n_kept) except *
    cdef void advance(self, const pace_t *pace)
    cdef void look_ahead(self, const pace_t *pace)
    cdef void look(self, const pace_t *pace) except *

cdef bint constraint_ready(constraint_t *self) noexcept nogil
cdef bint constraint_in_time(constraint_t *self) noexcept nogil
cdef int constraint_park(constraint_t *self, const float *row, int32_t n_vocab) noexcept nogil
cdef bint constraint_take(constraint_t *self) noexcept nogil
cdef void constraint_came(constraint_t *self, int32_t token) noexcept nogil
cdef bint constraint_looks_ahead(constraint_t *self) noexcept nogil
cdef int32_t constraint_allows(constraint_t *self, const int32_t *tokens, int32_t n) noexcept nogil
cdef void constraint_chose(constraint_t *self) noexcept nogil
cdef double constraint_share(const constraint_t *self) noexcept nogil
