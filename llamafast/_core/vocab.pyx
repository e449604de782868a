"""The vocabulary: tokenising, and every token's bytes in one table."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.limits cimport INT_MAX, INT_MIN
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp

from .headers.fim cimport (
    llama_vocab_fim_mid, llama_vocab_fim_pad, llama_vocab_fim_pre, llama_vocab_fim_rep, llama_vocab_fim_sep,
    llama_vocab_fim_suf,
)
from .headers.llama cimport (
    c_bool, llama_detokenize, llama_model_get_vocab, llama_token_to_piece, llama_vocab, llama_vocab_bos,
    llama_vocab_eos, llama_vocab_get_add_bos, llama_vocab_get_add_eos, llama_vocab_get_add_sep, llama_vocab_get_text,
    llama_vocab_is_control, llama_vocab_is_eog, llama_vocab_n_tokens, llama_vocab_sep,
)
from .headers.tokenize cimport (
    TOKENIZE_NO_MEMORY, TOKENIZE_THREW, tokenize_all, tokenize_apart, tokenize_depth, tokenize_limit, tokenize_seconds,
)
from .leaks cimport VOCAB, born, died
from .model cimport Model

from array import array

from llamafast.errors import Untokenizable

cdef extern from "Python.h" nogil:
    int PyGILState_Check()
    void *PyEval_SaveThread()
    void PyEval_RestoreThread(void *thread)

cdef enum:
    LONG = 256              # bytes; fewer take some microseconds, but for splitters by an expression


cdef class Vocab:
    """The vocabulary of a Model, its table read once. Every method is thread-safe (llama.h promises it)."""

    def __cinit__(self, Model model not None):
        self.model = model
        self.vocab = llama_model_get_vocab(model.model)
        pieces_read(&self.pieces, self.vocab)
        born(VOCAB)
        with nogil:
            self.depth = tokenize_depth(self.vocab)
        if self.depth < 0:
            raise MemoryError

    def __dealloc__(self):
        if self.pieces.text != NULL:
            died(VOCAB)
        PyMem_RawFree(self.pieces.offset)
        PyMem_RawFree(self.pieces.flags)
        PyMem_RawFree(self.pieces.text)
        PyMem_RawFree(self.pieces.eog)

    @property
    def n_tokens(self):
        return self.pieces.n_tokens

    @property
    def longest_piece(self):
        """The most bytes of text one token can stand for."""
        cdef int32_t token, longest = 0
        for token in range(self.pieces.n_tokens):
            longest = max(longest, self.pieces.offset[token + 1] - self.pieces.offset[token])
        return longest

    @property
    def longest_text(self):
        """The most bytes of text that ``tokenize`` takes."""
        return tokenize_limit(self.depth)

    @property
    def bos(self):
        """The beginning-of-sequence token, -1 where there is none."""
        return llama_vocab_bos(self.vocab)

    @property
    def eos(self):
        return llama_vocab_eos(self.vocab)

    def pair(self, first, second):
        """Two inputs that were tokenised with special tokens as the one that a cross-encoder reads.

        BERT: [CLS] first [SEP] second [SEP]; RoBERTa, with an end mark of its own: <s> first </s></s> second </s>.
        """
        cdef bint two_marks = llama_vocab_get_add_eos(self.vocab) and llama_vocab_get_add_sep(self.vocab)
        cdef bint has_bos = llama_vocab_get_add_bos(self.vocab) and len(second) > 0 and second[0] == self.bos
        between = array("i", [llama_vocab_sep(self.vocab)] if two_marks else [])
        return first + between + (second[1:] if has_bos else second)

    def text(self, int32_t token):
        """The token as the GGUF spells it (control tokens included), "" for an id that does not exist."""
        if not 0 <= token < self.pieces.n_tokens:
            return ""
        cdef bytes text = llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace")

    def piece(self, int32_t token):
        """The bytes a token stands for in output, those of control tokens included. Raises IndexError."""
        if not 0 <= token < self.pieces.n_tokens:
            raise IndexError(f"token id {token} is outside the vocabulary of {self.pieces.n_tokens}")
        return self.pieces.text[self.pieces.offset[token]:self.pieces.offset[token + 1]]

    def is_control(self, int32_t token):
        return 0 <= token < self.pieces.n_tokens and bool(self.pieces.flags[token] & TOKEN_CONTROL)

    def eog_tokens(self):
        """The tokens that end generation."""
        cdef int32_t i
        return [self.pieces.eog[i] for i in range(self.pieces.n_eog)]

    def fim_tokens(self):
        """Those that a text is filled in with: prefix, suffix, middle, pad, repository, file separator; -1 where there
        is none."""
        cdef const llama_vocab *vocab = self.vocab
        return (
            llama_vocab_fim_pre(vocab), llama_vocab_fim_suf(vocab), llama_vocab_fim_mid(vocab),
            llama_vocab_fim_pad(vocab), llama_vocab_fim_rep(vocab), llama_vocab_fim_sep(vocab),
        )

    @property
    def llama_pointers(self):
        """The addresses of the llama_vocab, which lives as long as this object, and of what stands for llama_tokenize.
        """
        return <size_t> self.vocab, <size_t> <void *> tokenize_for_grammars

    def differing(self, Vocab other not None, int32_t most):
        """The first tokens, ``most`` of them, that stand for other bytes there, are a control token in one of the two
        only, or are in one only and stand for something."""
        cdef int32_t token, n_shared = min(self.pieces.n_tokens, other.pieces.n_tokens)
        cdef const pieces_t *longer = &self.pieces if self.pieces.n_tokens > n_shared else &other.pieces
        cdef list found = []
        for token in range(longer.n_tokens):
            if len(found) == most:
                break
            if token < n_shared and same_token(&self.pieces, &other.pieces, token):
                continue
            if token < n_shared or longer.offset[token + 1] > longer.offset[token]:
                found.append(token)
        return found

    def check(self, const int32_t[::1] tokens not None):
        """Raises ValueError for no tokens or an id outside the vocabulary (llama.cpp would abort)."""
        cdef Py_ssize_t i
        if tokens.shape[0] == 0:
            raise ValueError("a prompt of 0 tokens")
        for i in range(tokens.shape[0]):
            if not 0 <= tokens[i] < self.pieces.n_tokens:
                raise ValueError(f"token id {tokens[i]} is outside the vocabulary of {self.pieces.n_tokens}")

    def tokenize(self, str text not None, *, bint add_special, bint parse_special):
        """Token ids of ``text`` as array('i').

        Raises UnicodeEncodeError for lone surrogates and Untokenizable for text that this model's tokeniser cannot
        take: too long, or with characters that the vocabulary cannot spell.
        """
        cdef bytes raw = text.encode("utf-8")
        if len(raw) > self.longest_text:
            raise Untokenizable(f"a text of {len(raw)} bytes; this model's tokeniser takes at most {self.longest_text}")
        cdef const char *start = raw
        cdef int32_t length = <int32_t> len(raw)
        # one token a byte is the worst case, BOS and EOS come on top
        cdef int32_t capacity = length + 8
        cdef int32_t *ids = <int32_t *> PyMem_RawMalloc(<size_t> capacity * sizeof(int32_t))
        cdef int32_t n
        if ids == NULL:
            raise MemoryError
        try:
            with nogil:
                n = tokenize_apart(
                    self.vocab, start, length, ids, capacity, add_special, parse_special, self.depth)
            if n == TOKENIZE_THREW:
                raise Untokenizable("the text has a character that this model's vocabulary cannot spell")
            if n == TOKENIZE_NO_MEMORY:
                raise Untokenizable(f"there is no memory to tokenise {length} bytes")
            if n == INT_MIN:
                raise Untokenizable("the text has more than 2**31 tokens")
            if n < 0:
                raise AssertionError(f"llama_tokenize needs {-n} tokens for {length} bytes")
            return array("i", (<char *> ids)[:<Py_ssize_t> n * <Py_ssize_t> sizeof(int32_t)])
        finally:
            PyMem_RawFree(ids)

    def detokenize(self, const int32_t[::1] tokens):
        """The text of a prompt, control tokens included; bytes that are not UTF-8 become U+FFFD.

        Raises IndexError for an id outside the vocabulary (llama.cpp would abort), OverflowError for more than
        2**31 - 2 tokens or bytes.
        """
        cdef Py_ssize_t i
        cdef int64_t size = 0
        for i in range(tokens.shape[0]):
            if not 0 <= tokens[i] < self.pieces.n_tokens:
                raise IndexError(f"token id {tokens[i]} is outside the vocabulary of {self.pieces.n_tokens}")
            size += self.pieces.offset[tokens[i] + 1] - self.pieces.offset[tokens[i]]
        if tokens.shape[0] == 0:
            return ""
        # llama.cpp only takes from the pieces: a blank in front, blanks before punctuation
        if max(size, tokens.shape[0]) >= INT_MAX:
            raise OverflowError(f"{tokens.shape[0]} tokens stand for {size} bytes")
        cdef int32_t n_tokens = <int32_t> tokens.shape[0]
        cdef const int32_t *first = &tokens[0]
        cdef int32_t capacity = <int32_t> size
        cdef bytearray out = bytearray(capacity)
        cdef char *buffer = out
        cdef int32_t n
        with nogil:
            n = llama_detokenize(self.vocab, first, n_tokens, buffer, capacity, False, True)
        if n < 0:
            raise AssertionError(f"llama_detokenize needs {-n} bytes, {capacity} given")
        return out[:n].decode("utf-8", "replace")


cdef bint same_token(const pieces_t *one, const pieces_t *other, int32_t token) noexcept nogil:
    """Whether a token stands for the same in both."""
    cdef int32_t n = one.offset[token + 1] - one.offset[token]
    return n == other.offset[token + 1] - other.offset[token] and memcmp(
        one.text + one.offset[token], other.text + other.offset[token], <size_t> n
    ) == 0 and one.flags[token] & TOKEN_CONTROL == other.flags[token] & TOKEN_CONTROL


cdef double tokenizing_seconds() noexcept nogil:
    return tokenize_seconds()


cdef int32_t tokenize_for_grammars(
    const llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity, c_bool add_special,
    c_bool parse_special
) noexcept nogil:
    """llguidance calls this with and without the GIL, which is let go of while a long text is tokenised. No thread that
    has the GIL waits for what the caller has locked: a matcher that takes text in is its thread's own."""
    cdef void *thread = NULL
    cdef int32_t n
    if length > LONG and PyGILState_Check():
        thread = PyEval_SaveThread()
    n = tokenize_all(vocab, text, length, tokens, capacity, add_special, parse_special)
    if thread != NULL:
        PyEval_RestoreThread(thread)
    return n


cdef int pieces_read(pieces_t *pieces, const llama_vocab *vocab) except -1:
    """Fill the table with one llama_token_to_piece call per token."""
    cdef int32_t n_tokens = llama_vocab_n_tokens(vocab)
    cdef size_t capacity = <size_t> n_tokens * 8 + 4096
    cdef size_t used = 0
    cdef int32_t token, n
    cdef char *grown
    pieces.n_tokens = n_tokens
    pieces.offset = <int32_t *> PyMem_RawMalloc((<size_t> n_tokens + 1) * sizeof(int32_t))
    pieces.flags = <uint8_t *> PyMem_RawMalloc(<size_t> n_tokens + 1)
    pieces.text = <char *> PyMem_RawMalloc(capacity)
    if pieces.offset == NULL or pieces.flags == NULL or pieces.text == NULL:
        raise MemoryError
    for token in range(n_tokens):
        pieces.offset[token] = <int32_t> used
        n = llama_token_to_piece(vocab, token, pieces.text + used, <int32_t> (capacity - used), 0, True)
        if n < 0:
            capacity = 2 * capacity + <size_t> -n
            grown = <char *> PyMem_RawRealloc(pieces.text, capacity)
            if grown == NULL:
                raise MemoryError
            pieces.text = grown
            n = llama_token_to_piece(vocab, token, pieces.text + used, <int32_t> (capacity - used), 0, True)
            if n < 0:
                raise AssertionError(f"llama_token_to_piece({token}) needs {-n} bytes, {capacity - used} given")
        used += <size_t> n
        pieces.n_eog += llama_vocab_is_eog(vocab, token)
        pieces.flags[token] = ((TOKEN_EOG if llama_vocab_is_eog(vocab, token) else 0)
                               | (TOKEN_CONTROL if llama_vocab_is_control(vocab, token) else 0))
    pieces.offset[n_tokens] = <int32_t> used
    pieces.eog = <int32_t *> PyMem_RawMalloc((<size_t> pieces.n_eog + 1) * sizeof(int32_t))
    if pieces.eog == NULL:
        raise MemoryError
    pieces.n_eog = 0
    for token in range(n_tokens):
        if pieces.flags[token] & TOKEN_EOG:
            pieces.eog[pieces.n_eog] = token
            pieces.n_eog += 1
    return 0
