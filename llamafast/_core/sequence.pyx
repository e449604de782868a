"""One choice of one request, from its prompt to its last token."""
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from .blocks cimport BLOCK, block_hash
from .context cimport UNLIMITED
from .headers.clock cimport now
from .leaks cimport SEQUENCE, born, died
from .logprobs cimport logprobs_free
from .masks cimport Constraint
from .sampler cimport Sampler
from .text cimport text_free, text_init
from .vocab cimport Vocab

from array import array


cdef class Sequence:
    """The engine's end of one choice.

    ``prompt`` is int32 token ids, at least one; ``max_tokens`` (at least 1) bounds the output. It ends at a stop string
    (which stays with ``keep_stop``), a stop token or an end-of-generation token, at those not before ``min_tokens``.
    ``tag`` names the sequence in the Outbox. Sequences of different ``salt`` never share what they computed; ``seed``
    is the salt's digest, with which the digests of its blocks begin.
    ``checkpoints`` are lengths of the prompt at which its state is likely to be wanted again, for whoever sets
    ``save_at``. With a ``constraint`` (of its own) an end-of-generation token always ends it.

    Control tokens leave text only with ``show_control``, or when they are among the ids ``preserved`` (int32).

    ``top_logprobs`` (-1: none) asks for the log probabilities of the generated tokens and of so many of the most likely
    ones beside each; with ``score_prompt`` for those of the prompt too, of which nothing must be taken from others, and
    ``max_tokens`` may be 0.

    Raises ValueError for an empty prompt or an id outside the vocabulary (llama.cpp would abort).
    """

    def __cinit__(
        self, Vocab vocab not None, const int32_t[::1] prompt not None, Sampler sampler not None, *, int64_t tag,
        int32_t max_tokens, int32_t min_tokens=0, tuple stops=(), tuple stop_tokens=(), bint keep_stop=False,
        int32_t top_logprobs=-1, bint score_prompt=False, bint ignore_eos=False, bint show_control=False,
        const int32_t[::1] preserved=None,
        bytes salt not None=b"", uint64_t seed=0, tuple checkpoints=(), Constraint constraint=None,
    ):
        cdef sequence_t *s = &self.state
        cdef Py_ssize_t i
        if prompt.shape[0] == 0 or prompt.shape[0] > INT32_MAX - <Py_ssize_t> max_tokens:
            raise ValueError(f"a prompt of {prompt.shape[0]} tokens")
        if top_logprobs < -1 or (score_prompt and top_logprobs < 0):
            raise ValueError(f"top_logprobs is {top_logprobs}")
        if max_tokens < 1 - score_prompt:
            raise ValueError(f"max_tokens is {max_tokens}")
        for i in range(prompt.shape[0]):
            if not 0 <= prompt[i] < vocab.pieces.n_tokens:
                raise ValueError(f"token id {prompt[i]} is outside the vocabulary of {vocab.pieces.n_tokens}")
        s.tag = tag
        s.seq_id = -1
        s.output_row = s.leader = -1
        s.save_at = UNLIMITED
        s.n_prompt = s.n_tokens = <int32_t> prompt.shape[0]
        s.n_max = s.n_prompt + max_tokens
        s.capacity = s.n_prompt + min(max_tokens, 64)
        s.ignore_eos = ignore_eos
        s.show_control = show_control
        if preserved is not None and preserved.shape[0]:
            self.preserved = (<char *> &preserved[0])[:preserved.shape[0] * <Py_ssize_t> sizeof(int32_t)]
            s.preserved = <const int32_t *> <const char *> self.preserved
            s.n_preserved = <int32_t> preserved.shape[0]
        s.tokens = <int32_t *> malloc(<size_t> s.capacity * sizeof(int32_t))
        if s.tokens == NULL:
            raise MemoryError
        born(SEQUENCE)
        s.logprobs.n_top = top_logprobs
        # of the first token there is none
        s.logprobs.n_scored = 1 if score_prompt else s.n_prompt
        s.n_min = s.n_prompt + min(max(min_tokens, 0), max_tokens)
        if stop_tokens:
            s.stop_tokens = <int32_t *> malloc(<size_t> len(stop_tokens) * sizeof(int32_t))
            if s.stop_tokens == NULL:
                raise MemoryError
        for token in stop_tokens:
            if not 0 <= token < vocab.pieces.n_tokens:
                raise ValueError(f"token id {token} is outside the vocabulary of {vocab.pieces.n_tokens}")
            s.stop_tokens[s.n_stop_tokens] = token
            s.n_stop_tokens += 1
        s.text.keep_stop = keep_stop
        memcpy(s.tokens, &prompt[0], <size_t> s.n_prompt * sizeof(int32_t))
        text_init(&s.text, stops)
        self.salt = salt
        s.salt = salt
        s.n_salt = len(salt)
        s.seed = seed
        self.sampler = sampler
        self.checkpoints = checkpoints
        s.sampler = &sampler.state
        s.submitted = now()
        self.constraint = constraint
        if constraint is not None:
            s.constraint = &constraint.state

    def __dealloc__(self):
        if self.state.tokens != NULL:
            died(SEQUENCE)
        free(self.state.tokens)
        free(self.state.hashes)
        free(self.state.stop_tokens)
        logprobs_free(&self.state.logprobs)
        text_free(&self.state.text)

    @property
    def tag(self):
        return self.state.tag

    @property
    def n_prompt(self):
        return self.state.n_prompt

    @property
    def n_tokens(self):
        """Prompt and output so far."""
        return self.state.n_tokens

    @property
    def n_past(self):
        """How many of them are in memory."""
        return self.state.n_past

    @property
    def n_max(self):
        """What n_tokens can reach."""
        return self.state.n_max

    @property
    def n_cached(self):
        """How many prompt tokens were taken from another sequence instead of being computed."""
        return self.state.n_cached

    @property
    def scores_prompt(self):
        """Whether log probabilities of its prompt are still to come: then every row of it gives logits."""
        return self.state.logprobs.n_scored < self.state.n_prompt

    @property
    def save_at(self):
        """Runner.run returns SAVE_DUE once so many tokens are in memory."""
        return self.state.save_at

    @save_at.setter
    def save_at(self, int32_t n_tokens):
        self.state.save_at = n_tokens

    @property
    def queue_seconds(self):
        """From here to the first work on it, be it a row or a restored part; None before. So what it waits for another
        sequence's prefix counts."""
        return self.state.scheduled - self.state.submitted if self.state.scheduled else None

    def schedule(self):
        """Work on it begins, elsewhere than in a Runner's steps."""
        sequence_schedule(&self.state, now())

    @property
    def finished(self):
        return self.state.finish != FINISH_NONE

    def tokens(self):
        """A copy of prompt and output, as array('i')."""
        cdef Py_ssize_t size = <Py_ssize_t> self.state.n_tokens * <Py_ssize_t> sizeof(int32_t)
        return array("i", (<char *> self.state.tokens)[:size])


cdef int sequence_hash(sequence_t *self) noexcept nogil:
    """Bring ``hashes`` up to the whole blocks of ``tokens``: 0, or -1 when out of memory."""
    cdef int32_t n_blocks = self.n_tokens // BLOCK
    cdef uint64_t parent
    cdef uint64_t *grown
    if n_blocks > self.n_blocks:
        grown = <uint64_t *> realloc(self.hashes, <size_t> (self.capacity // BLOCK + 1) * sizeof(uint64_t))
        if grown == NULL:
            return -1
        self.hashes = grown
    while self.n_blocks < n_blocks:
        parent = self.hashes[self.n_blocks - 1] if self.n_blocks else self.seed
        self.hashes[self.n_blocks] = block_hash(parent, self.tokens + self.n_blocks * BLOCK)
        self.n_blocks += 1
    return 0


cdef void sequence_schedule(sequence_t *self, double when) noexcept nogil:
    """Work on it began at ``when``; the first time counts."""
    if self.scheduled == 0:
        self.scheduled = when


cdef bint sequence_preserves(const sequence_t *self, int32_t token) noexcept nogil:
    """Whether a control token's text is shown although control tokens are not; they are few, and rare in text."""
    cdef int32_t i
    for i in range(self.n_preserved):
        if self.preserved[i] == token:
            return True
    return False


cdef int sequence_append(sequence_t *self, int32_t token) noexcept nogil:
    """Add a generated token: 0, or -1 when out of memory."""
    cdef int32_t *grown
    cdef int32_t capacity
    if self.n_tokens == self.capacity:
        capacity = min(2 * self.capacity, self.n_max)
        grown = <int32_t *> realloc(self.tokens, <size_t> capacity * sizeof(int32_t))
        if grown == NULL:
            return -1
        self.tokens = grown
        self.capacity = capacity
    self.tokens[self.n_tokens] = token
    self.n_tokens += 1
    self.n_unreported += 1
    return 0
