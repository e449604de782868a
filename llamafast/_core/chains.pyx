"""Where the last tokens of a text stood before, in bounded time however long it is and however often it repeats itself.

Each token is entered under the hash of the three that end with it, and points to the one before it of the same hash:
the chains of LZ77 coders (Storer and Szymanski 1982; zlib's deflate). A look-up follows one for a few steps and
compares tokens: a hash only finds. Eight bytes a token; heads are allotted for the text as it is at first and never
grow: the chains of a text that does get longer, not the look-ups.
"""
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

cdef enum:
    CANDIDATES = 16
    LEAST_HEADS = 1 << 8
    MOST_HEADS = 1 << 17


cdef int chains_index(chains_t *self, const int32_t *text, int32_t n_text, int32_t most) noexcept nogil:
    """Index up to ``most`` more tokens of a text of ``n_text``: 0, or -1 when out of memory."""
    cdef int32_t end = min(n_text, self.n + most)
    cdef int32_t *grown
    cdef int32_t *head
    if self.heads == NULL:
        self.n_heads = LEAST_HEADS
        while self.n_heads < MOST_HEADS and self.n_heads < 2 * n_text:
            self.n_heads *= 2
        self.heads = <int32_t *> calloc(<size_t> self.n_heads, sizeof(int32_t))
        if self.heads == NULL:
            return -1
    if end > self.capacity:
        grown = <int32_t *> realloc(self.before, <size_t> (2 * n_text) * sizeof(int32_t))
        if grown == NULL:
            return -1
        self.before = grown
        self.capacity = 2 * n_text
    while self.n < end:
        if self.n >= GRAM - 1:
            head = &self.heads[gram_hash(text + self.n) & <uint32_t> (self.n_heads - 1)]
            self.before[self.n] = head[0]
            head[0] = self.n + 1
        self.n += 1
    return 0


cdef match_t chains_find(
    const chains_t *self, const int32_t *text, const int32_t *tail, int32_t n_tail, int32_t hint
) noexcept nogil:
    """Where ``tail[:n_tail]``, the same text or another one, may go on: behind the longest match of its end, the latest
    of equals. What was found last time, moved on, is the ``hint``."""
    cdef match_t best
    cdef match_t found[CANDIDATES]
    cdef int32_t at, n_found = 0, left = CANDIDATES - 1
    # behind the end of the same text nothing follows
    cdef int32_t limit = n_tail if tail == text else self.n
    memset(&best, 0, sizeof(match_t))
    if n_tail < GRAM or self.n < GRAM:
        return best
    if 0 < hint < limit and hint < self.n:
        # a copy that has changed a word goes on behind it
        match_add(&best, found, &n_found, hint, common_end(text, hint, tail, n_tail), 1, text[hint])
    at = self.heads[gram_hash(tail + n_tail - 1) & <uint32_t> (self.n_heads - 1)]
    while at and left:
        if at < limit and at != hint:
            match_add(&best, found, &n_found, at, common_end(text, at, tail, n_tail), GRAM, text[at])
        at = self.before[at - 1]
        left -= 1
    if best.n:
        best.agreed = match_agreed(&best, found, n_found)
    return best


cdef void match_add(
    match_t *best, match_t *found, int32_t *n_found, int32_t at, int32_t n, int32_t least, int32_t token
) noexcept nogil:
    """A candidate goes on at ``at``, with ``token``, behind ``n`` tokens that are the same: ``least`` or it is none."""
    cdef match_t *added = &found[n_found[0]]
    if n < least:
        return
    added.at = at
    added.n = n
    added.token = token
    n_found[0] += 1
    if n > best.n or (n == best.n and at > best.at):
        best[0] = added[0]


cdef float match_agreed(const match_t *best, const match_t *found, int32_t n_found) noexcept nogil:
    """The share of candidates, of those that matched at least half as much as the best, that went on as it did; as if
    half a one more had."""
    cdef int32_t i, n = 0, n_agreed = 0
    for i in range(n_found):
        if 2 * found[i].n >= best.n:
            n += 1
            n_agreed += found[i].token == best.token
    return <float> ((n_agreed + 0.5) / (n + 0.5))


cdef void chains_free(chains_t *self) noexcept nogil:
    free(self.heads)
    free(self.before)
    self.heads = NULL
    self.before = NULL
    self.n = self.capacity = self.n_heads = 0
