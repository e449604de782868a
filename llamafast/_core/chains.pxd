# Where the last tokens of a text stood before: hash chains, as LZ77 coders keep them.
from libc.stdint cimport int32_t, uint32_t

cdef enum:
    GRAM = 3                # tokens that are hashed, and the least that a match has but where it went on so far
    LONGEST_MATCH = 64      # beyond which nobody looks

# Of one text that only grows. Zeroed, it knows of nothing.
cdef struct chains_t:
    int32_t *heads          # (n_heads,) by hash: behind the last gram of it; 0: none
    int32_t n_heads         # a power of two
    int32_t *before         # (capacity,) by where a gram ends: behind the one before it of the same hash
    int32_t capacity
    int32_t n               # tokens of the text that are indexed

# Where it may go on as it did before.
cdef struct match_t:
    int32_t at              # the token that followed
    int32_t n               # tokens before it that are the same; 0: nothing was found
    int32_t token           # what followed
    float agreed            # of those that matched nearly as much, the share that was followed by the same token

cdef inline uint32_t gram_hash(const int32_t *last) noexcept nogil:
    """Of the three tokens that end with ``last``."""
    cdef uint32_t h = <uint32_t> last[0]
    h = h * 0x9E3779B1U ^ <uint32_t> (last - 1)[0]
    h = h * 0x85EBCA77U ^ <uint32_t> (last - 2)[0]
    h ^= h >> 15
    h *= 0xC2B2AE3DU
    return h ^ h >> 13

cdef inline int32_t common_end(
    const int32_t *a, int32_t n_a, const int32_t *b, int32_t n_b
) noexcept nogil:
    """With how many tokens in common, up to LONGEST_MATCH, ``a[:n_a]`` and ``b[:n_b]`` end."""
    cdef int32_t n = 0, most = min(min(n_a, n_b), LONGEST_MATCH)
    while n < most and a[n_a - 1 - n] == b[n_b - 1 - n]:
        n += 1
    return n

cdef int chains_index(chains_t *self, const int32_t *text, int32_t n_text, int32_t most) noexcept nogil
cdef match_t chains_find(
    const chains_t *self, const int32_t *text, const int32_t *tail, int32_t n_tail, int32_t hint
) noexcept nogil
cdef void match_add(
    match_t *best, match_t *found, int32_t *n_found, int32_t at, int32_t n, int32_t least, int32_t token
) noexcept nogil
cdef float match_agreed(const match_t *best, const match_t *found, int32_t n_found) noexcept nogil
cdef void chains_free(chains_t *self) noexcept nogil
