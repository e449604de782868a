"""One choice of one request, from its prompt to its last token: its tokens, its phase and its clock."""
from cpython.ref cimport PyObject
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc

from .budget cimport budget_free, budget_init
from .chains cimport chains_free
from .constraint cimport Constraint
from .headers.clock cimport now
from .invocation cimport Invocation
from .leaks cimport SEQUENCE, born, died
from .logprobs cimport logprobs_free
from .sampler cimport Sampler
from .spans cimport cut_before, cut_behind, is_media, span_behind
from .text cimport text_free, text_init
from .tokens cimport tokens_free, tokens_init, tokens_take_spans
from .vocab cimport Vocab

from array import array


cdef class Sequence:
    """The engine's end of one choice.

    ``prompt`` is int32 token ids, at least one; ``max_tokens`` bounds the output (0: only the prompt is computed). It
    ends at a stop string, a stop token or an end-of-generation token, as ``output_options`` allow: these are the fields
    of options_t.
    ``tag`` names the sequence in the Outbox. Sequences of different ``salt`` never share what they computed; ``seed``
    is the salt's digest, with which the digests of its blocks begin. With ``private`` nobody who comes later will have
    the salt.
    ``checkpoints`` are lengths of the prompt at which its state is likely to be wanted again, for whoever sets
    ``save_at``. With a ``constraint`` (of its own) an end-of-generation token always ends it.

    Control tokens leave text only with ``show_control``, or when they are among the ids ``preserved`` (int32).

    ``top_logprobs`` (-1: none) asks for the log probabilities of the generated tokens and of so many of the most likely
    ones beside each; with ``score_prompt`` for those of the prompt too, of which nothing must be taken from others.

    ``budget`` bounds its thoughts: how many tokens of them there may be, which of the marks the prompt has opened (-1:
    none), the marks and the closers, as budget_init has them.

    ``spans`` (Span) are the rows of media in the prompt, whose ids are below -1 as spans.pxd has them: in order, none
    at the end. They are computed once ``Runner.give_rows`` has brought them; ``media`` is what whoever does so knows
    them by. ``prediction`` (int32 ids) is text that the answer may repeat. With an ``invocation``, inside the prompt,
    ``group``, ``salt`` and ``seed`` are of what is before that.

    Raises ValueError for an empty prompt or an id outside the vocabulary (llama.cpp would abort), TypeError for an
    option that there is not.
    """

    def __cinit__(
        self, Vocab vocab not None, const int32_t[::1] prompt not None, Sampler sampler not None, *, int64_t tag,
        int32_t max_tokens, tuple stops=(), tuple stop_tokens=(), int32_t top_logprobs=-1, bint score_prompt=False,
        bint show_control=False, const int32_t[::1] preserved=None, bytes salt not None=b"", bint private=False,
        uint64_t seed=0, tuple checkpoints=(), Constraint constraint=None, tuple spans=(), tuple media=(),
        int32_t group=0, object adapters=None, Invocation invocation=None, tuple budget=None,
        const int32_t[::1] prediction=None, **output_options,
    ):
        cdef sequence_t *s = &self.state
        cdef dict options = s.out.options   # all at 0 so far
        options["speculative"] = True
        cdef Py_ssize_t i
        if unknown := output_options.keys() - options.keys():
            raise TypeError(f"a Sequence has no option {min(unknown)!r}")
        s.out.options = options | output_options
        if prompt.shape[0] == 0 or prompt.shape[0] > INT32_MAX - <Py_ssize_t> max_tokens:
            raise ValueError(f"a prompt of {prompt.shape[0]} tokens")
        if top_logprobs < -1 or (score_prompt and top_logprobs < 0):
            raise ValueError(f"top_logprobs is {top_logprobs}")
        if max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}")
        for i in range(prompt.shape[0]):
            if not 0 <= prompt[i] < vocab.pieces.n_tokens and not (spans and is_media(prompt[i])):
                raise ValueError(f"token id {prompt[i]} is outside the vocabulary of {vocab.pieces.n_tokens}")
        if spans and score_prompt:
            raise ValueError("a prompt with media is not scored")
        s.owner = <PyObject *> self
        s.tag = tag
        s.group = group
        self.invocation = invocation
        if invocation is not None:
            if invocation.at >= prompt.shape[0]:
                raise ValueError(f"an invocation at token {invocation.at} of {prompt.shape[0]}")
            s.invocation = invocation.state
        s.draft.prediction.at = -1
        if prediction is not None and prediction.shape[0]:
            for i in range(prediction.shape[0]):
                if not 0 <= prediction[i] < vocab.pieces.n_tokens:
                    raise ValueError(f"token id {prediction[i]} is outside the vocabulary of {vocab.pieces.n_tokens}")
            self.prediction = (<char *> &prediction[0])[:prediction.shape[0] * <Py_ssize_t> sizeof(int32_t)]
            s.draft.prediction.tokens = <const int32_t *> <const char *> self.prediction
            s.draft.prediction.n = <int32_t> prediction.shape[0]
        s.seq_id = -1
        s.share.leader = -1
        s.out.show_control = show_control
        if preserved is not None and preserved.shape[0]:
            self.preserved = (<char *> &preserved[0])[:preserved.shape[0] * <Py_ssize_t> sizeof(int32_t)]
            s.out.preserved = <const int32_t *> <const char *> self.preserved
            s.out.n_preserved = <int32_t> preserved.shape[0]
        tokens_init(&s.tokens, &prompt[0], <int32_t> prompt.shape[0], max_tokens)
        born(SEQUENCE)
        s.out.logprobs.n_top = top_logprobs
        s.out.logprobs.width = 1 + top_logprobs + score_prompt
        # of the first token there is none
        s.out.logprobs.n_scored = 1 if score_prompt else s.tokens.n_prompt
        if stop_tokens:
            s.out.stop_tokens = <int32_t *> malloc(<size_t> len(stop_tokens) * sizeof(int32_t))
            if s.out.stop_tokens == NULL:
                raise MemoryError
        for token in stop_tokens:
            if not 0 <= token < vocab.pieces.n_tokens:
                raise ValueError(f"token id {token} is outside the vocabulary of {vocab.pieces.n_tokens}")
            s.out.stop_tokens[s.out.n_stop_tokens] = token
            s.out.n_stop_tokens += 1
        if spans:
            self.spans = [[given, None] for given in spans]
            tokens_take_spans(&s.tokens, spans)
        text_init(&s.out.text, stops)
        if budget is not None:
            for _, _, forced in budget[2]:
                vocab.check(array("i", forced))
            budget_init(&s.out.budget, budget[0], budget[1], budget[2], budget[3])
        s.out.matched_stop = -1
        self.salt = salt
        s.share.salt = salt
        s.share.n_salt = len(salt)
        s.share.private = private
        s.share.seed = seed
        self.sampler = sampler
        self.checkpoints = checkpoints
        self.media = media
        self.adapters = adapters
        s.out.sampler = &sampler.state
        s.clock.submitted = now()
        self.constraint = constraint
        if constraint is not None:
            s.out.constraint = &constraint.state

    def __dealloc__(self):
        if self.state.tokens.ids != NULL:
            died(SEQUENCE)
        tokens_free(&self.state.tokens)
        free(self.state.share.hashes)
        free(self.state.out.stop_tokens)
        chains_free(&self.state.draft.own)
        chains_free(&self.state.draft.prediction.chains)
        logprobs_free(&self.state.out.logprobs)
        text_free(&self.state.out.text)
        budget_free(&self.state.out.budget)

    @property
    def tag(self):
        return self.state.tag

    @property
    def group(self):
        """Of adapters, which it has in the end; 0: none."""
        return self.state.invocation.group or self.state.group

    @property
    def private(self):
        """Whether nobody who comes later will have its salt."""
        return self.state.share.private

    @property
    def n_prompt(self):
        return self.state.tokens.n_prompt

    @property
    def n_tokens(self):
        """Prompt and output so far, as far as they are certain."""
        return self.state.tokens.n_certain

    @property
    def n_past(self):
        """How many of them are in memory."""
        return self.state.tokens.n_past

    @property
    def n_max(self):
        """What n_tokens can reach."""
        return self.state.tokens.n_max

    @property
    def n_scored(self):
        """How many tokens of its prompt need no log probabilities any more: the rows before the last one of them are
        done. All where nobody has asked for any."""
        return min(self.state.out.logprobs.n_scored, self.state.tokens.n_prompt)

    @property
    def n_cached(self):
        """Tokens of its prompt that were taken from elsewhere."""
        return self.state.share.n_cached

    @property
    def seq_id(self):
        """Its place among those that run; -1: it does not. Any thread."""
        return self.state.seq_id

    @property
    def save_at(self):
        """Runner.run returns SAVE_DUE once so many tokens are in memory."""
        return self.state.tokens.save_at

    @save_at.setter
    def save_at(self, int32_t n_tokens):
        self.state.tokens.save_at = n_tokens

    @property
    def queue_seconds(self):
        """From here to the first work on it, be it a row or a restored part; None before. So what it waits for another
        sequence's prefix counts."""
        return self.state.clock.scheduled - self.state.clock.submitted if self.state.clock.scheduled else None

    @property
    def age(self):
        """Seconds since it was submitted."""
        return now() - self.state.clock.submitted

    @property
    def phase(self):
        """One of PHASE_*."""
        return self.state.phase

    @property
    def awaited(self):
        """Which of its spans it stands before without their rows, or will once it has taken what it follows; None: it
        can go on, as far as those are concerned."""
        cdef sequence_t *s = &self.state
        cdef int32_t n = max(s.tokens.n_past, s.share.n_shared if s.share.leader >= 0 else 0)
        cdef const span_t *span = span_behind(s.tokens.spans, s.tokens.n_spans, n)
        return None if span == NULL or span.row > n or span.rows != NULL else span - s.tokens.spans

    def drop_rows(self, bint wanted=False):
        """Let go of rows that are in memory by now, or of all: nothing is ``wanted`` of it. Engine thread."""
        cdef int32_t i
        cdef span_t *span
        for i in range(self.state.tokens.n_spans):
            span = &self.state.tokens.spans[i]
            if span.rows != NULL and (not wanted or span.row + span.n_rows <= self.state.tokens.n_past):
                span.rows = NULL
                self.spans[i][1] = None

    def next_span(self, int32_t n):
        """The first of its spans that has rows from token ``n`` on; as many as it has where none does."""
        cdef const span_t *span = span_behind(self.state.tokens.spans, self.state.tokens.n_spans, n)
        return self.state.tokens.n_spans if span == NULL else span - self.state.tokens.spans

    def cut_before(self, int32_t n):
        """The last place up to ``n`` tokens where it may be cut: not inside a span."""
        return cut_before(self.state.tokens.ids, self.state.tokens.n_tokens, n)

    def cut_behind(self, int32_t n):
        """The first such place from ``n`` on."""
        return cut_behind(self.state.tokens.ids, self.state.tokens.n_tokens, n)

    @property
    def n_predicted(self):
        """How many of its tokens came as its prediction had them."""
        return self.state.draft.prediction.n_accepted

    @property
    def n_drafted(self):
        """How many tokens that were drafted for it have been decoded."""
        return self.state.draft.n_decoded

    @property
    def n_accepted(self):
        """And how many of those came."""
        return self.state.draft.n_accepted

    @property
    def finished(self):
        return self.state.phase == PHASE_ENDED

    def tokens(self):
        """A copy of prompt and output, as array('i')."""
        cdef Py_ssize_t size = <Py_ssize_t> self.state.tokens.n_certain * <Py_ssize_t> sizeof(int32_t)
        return array("i", (<char *> self.state.tokens.ids)[:size])


# Which phases may follow each: bit p of FOLLOWED_BY[q] says that p may follow q.
cdef int FOLLOWED_BY[N_PHASES]
FOLLOWED_BY[:] = [
    # whoever is added waits for somebody, or has its turn
    1 << PHASE_RESTORING | 1 << PHASE_FOLLOWING | 1 << PHASE_PREFILLING,
    1 << PHASE_WAITING | 1 << PHASE_FOLLOWING | 1 << PHASE_PREFILLING | 1 << PHASE_ENDED,
    1 << PHASE_WAITING | 1 << PHASE_PREFILLING | 1 << PHASE_ENDED,
    1 << PHASE_WAITING | 1 << PHASE_DECODING | 1 << PHASE_PARKED | 1 << PHASE_ENDED,
    1 << PHASE_WAITING | 1 << PHASE_PARKED | 1 << PHASE_ENDED,
    1 << PHASE_WAITING | 1 << PHASE_DECODING | 1 << PHASE_ENDED,
    0,
]


cdef bint sequence_may_enter(int phase, int next_phase) noexcept nogil:
    """Whether one phase may follow another."""
    return phase == next_phase or FOLLOWED_BY[phase] >> next_phase & 1


cdef void sequence_enter(sequence_t *self, int phase) noexcept nogil:
    """The one setter of ``phase``."""
    self.astray = self.astray or not sequence_may_enter(self.phase, phase)
    self.phase = phase


cdef void sequence_reach(sequence_t *self, int32_t n_past) noexcept nogil:
    """Its first ``n_past`` tokens, and no more, are in memory now."""
    self.astray = self.astray or not 0 <= n_past <= self.tokens.n_certain
    self.tokens.n_past = n_past


cdef void sequence_schedule(sequence_t *self, double when) noexcept nogil:
    """Work on it began at ``when``; the first time counts."""
    if self.clock.scheduled == 0:
        self.clock.scheduled = when


cdef void sequence_tick(sequence_t *self, double when) noexcept nogil:
    """It got a token, or several, at ``when``."""
    if self.clock.first_token == 0:
        self.clock.first_token = when
    self.clock.newest_token = when
