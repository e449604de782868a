"""One text to embed, from its tokens to its vectors."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport fabs, isfinite, pow, sqrt
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from .adapters cimport MAX_GROUPS
from .leaks cimport INPUT, born, died
from .vocab cimport Vocab

cdef enum:
    # llama-server's embd_normalize 0 scales to 16-bit integers
    INT16_SCALE = 32760


cdef class Input:
    """One text to embed. ``tokens`` is int32 ids, at least one.

    ``dimensions`` (0: all) cuts its vectors before they are normalised; ``normalize`` is llama-server's embd_normalize:
    -1 not at all, 0 largest absolute value to 32760, p > 0 the p-norm to 1. ``group`` is of adapters, which
    ``adapters`` holds.

    Raises ValueError for no tokens or an id outside the vocabulary (llama.cpp would abort).
    """

    def __cinit__(
        self, Vocab vocab not None, const int32_t[::1] tokens not None, *, int32_t dimensions=0, int32_t normalize=2,
        int32_t group=0, object adapters=None
    ):
        cdef Py_ssize_t i
        if not 0 < tokens.shape[0] <= 0x7FFFFFF0:
            raise ValueError(f"an input of {tokens.shape[0]} tokens")
        for i in range(tokens.shape[0]):
            if not 0 <= tokens[i] < vocab.pieces.n_tokens:
                raise ValueError(f"token id {tokens[i]} is outside the vocabulary of {vocab.pieces.n_tokens}")
        if dimensions < 0 or normalize < -1 or not 0 <= group < MAX_GROUPS:
            raise ValueError(f"dimensions {dimensions}, normalize {normalize}, group {group}")
        self.group = group
        self.adapters = adapters
        self.state.n_tokens = <int32_t> tokens.shape[0]
        self.state.seq_id = -1
        self.state.dimensions = dimensions
        self.state.normalize = normalize
        self.state.tokens = <int32_t *> malloc(<size_t> self.state.n_tokens * sizeof(int32_t))
        if self.state.tokens == NULL:
            raise MemoryError
        born(INPUT)
        memcpy(self.state.tokens, &tokens[0], <size_t> self.state.n_tokens * sizeof(int32_t))

    def __dealloc__(self):
        if self.state.tokens != NULL:
            died(INPUT)
        free(self.state.tokens)
        free(self.state.values)

    @property
    def n_tokens(self):
        return self.state.n_tokens

    @property
    def vectors(self):
        """Its vectors in float32, one after another: one, or one a token where nothing is pooled.

        None until it has finished, and for vectors that are not finite.
        """
        cdef input_t *s = &self.state
        if s.n_past < s.n_tokens or not s.finite:
            return None
        return PyBytes_FromStringAndSize(
            <char *> s.values, <Py_ssize_t> s.n_vectors * s.width * <Py_ssize_t> sizeof(float)
        )


cdef void input_finish(input_t *s) noexcept nogil:
    """Cut and normalise the vectors, if all their numbers are finite."""
    cdef int32_t i
    cdef int32_t width = s.width if s.dimensions == 0 else min(s.dimensions, s.width)
    cdef size_t k
    for k in range(<size_t> s.n_vectors * s.width):
        if not isfinite(s.values[k]):
            return
    for i in range(s.n_vectors):
        memmove(s.values + <size_t> i * width, s.values + <size_t> i * s.width, <size_t> width * sizeof(float))
        normalize(s.values + <size_t> i * width, width, s.normalize)
    s.width = width
    s.finite = True


cdef void normalize(float *values, int32_t n, int32_t p) noexcept nogil:
    """Scale ``values`` so that their p-norm is 1; a null vector stays one."""
    cdef int32_t i
    cdef double largest = 0, total = 0, norm = 1
    for i in range(n):
        largest = max(largest, fabs(values[i]))
    if p < 0 or largest == 0:
        return
    if p == 0:
        norm = largest / INT16_SCALE
    elif p == 2:
        for i in range(n):
            total += <double> values[i] * values[i]
        norm = sqrt(total)
    else:
        # the largest is taken out of the sum, so that no power leaves a double
        for i in range(n):
            total += pow(fabs(values[i]) / largest, p)
        norm = largest * pow(total, 1.0 / p)
    for i in range(n):
        values[i] = <float> (values[i] / norm)
