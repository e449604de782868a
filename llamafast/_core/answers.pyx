"""What was answered lately: what one client was told another one may be told again, where both are of one salt.

The chains of ``chains`` over a ring of tokens, the oldest of which are overwritten. Heads are found by a gram's hash
and the salt's, and a match is believed only where its answer's salt is the same, byte by byte; it never leaves its
answer.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from .chains cimport GRAM, LONGEST_MATCH, gram_hash, match_add, match_agreed, match_t
from .draft cimport proposal_t
from .sequence cimport sequence_t

cdef enum:
    CANDIDATES = 16
    END = -1                # stands before an answer, and no token is it
    MOST_KEPT = 4096        # tokens of one answer: its last ones
    LEAST_KEPT = 8          # shorter ones are not worth a place
    TOKEN_BYTES = 12        # in the three arrays
    TOKENS_AN_ANSWER = 16
    # of a salt beside its own, which is allotted by itself
    SALT_BYTES = 32
    # a salt may have such a part of the room for all
    SALTS = 8


cdef int answers_init(answers_t *self, int64_t n_bytes) noexcept nogil:
    """For zeroed memory and as many tokens as go into ``n_bytes``, salts included: 0, or -1 when out of memory."""
    cdef uint32_t capacity = 1 << 10
    if n_bytes < bytes_of(capacity) * 10 // 9:
        return 0
    # a tenth at least is for salts
    while bytes_of(2 * capacity) * 10 // 9 <= n_bytes and capacity < 1 << 28:
        capacity *= 2
    self.tokens = <int32_t *> malloc(capacity * sizeof(int32_t))
    self.before = <uint32_t *> malloc(capacity * sizeof(uint32_t))
    self.heads = <uint32_t *> calloc(capacity, sizeof(uint32_t))
    self.n_places = <int32_t> (capacity // TOKENS_AN_ANSWER)
    self.answers = <answer_t *> calloc(<size_t> self.n_places, sizeof(answer_t))
    if not (self.tokens and self.before and self.heads and self.answers):
        answers_free(self)
        return -1
    self.capacity = capacity
    self.salt_room = n_bytes - bytes_of(capacity)
    # 0 stands for nothing in heads
    self.n = 1
    return 0


cdef void answers_free(answers_t *self) noexcept nogil:
    while self.n_answers:
        drop_oldest(self)
    free(self.tokens)
    free(self.before)
    free(self.heads)
    free(self.answers)
    memset(self, 0, sizeof(answers_t))


cdef void answers_clear(answers_t *self) noexcept nogil:
    """Forget all answers."""
    while self.n_answers:
        drop_oldest(self)
    if self.capacity:
        memset(self.heads, 0, self.capacity * sizeof(uint32_t))


cdef int64_t answers_size(const answers_t *self) noexcept nogil:
    """What it takes, salts included."""
    return bytes_of(self.capacity) + self.salt_bytes


cdef int64_t bytes_of(uint32_t capacity) noexcept nogil:
    """What it takes without salts."""
    return capacity * <int64_t> TOKEN_BYTES + capacity // TOKENS_AN_ANSWER * <int64_t> sizeof(answer_t)


cdef int64_t salt_size(Py_ssize_t n_salt) noexcept nogil:
    return n_salt + SALT_BYTES if n_salt else 0


cdef void drop_oldest(answers_t *self) noexcept nogil:
    cdef answer_t *answer = &self.answers[self.oldest]
    self.salt_bytes -= salt_size(answer.n_salt)
    free(answer.salt)
    answer.salt = NULL
    self.oldest = (self.oldest + 1) % self.n_places
    self.n_answers -= 1


cdef uint32_t head_of(const answers_t *self, const sequence_t *s, const int32_t *last) noexcept nogil:
    cdef uint64_t seed = s.invocation.seed if s.invocation.at else s.share.seed
    return (gram_hash(last) ^ <uint32_t> seed ^ <uint32_t> (seed >> 32)) & (self.capacity - 1)


cdef Py_ssize_t salt_of(const sequence_t *s, const char **salt) noexcept nogil:
    """The salt of what a sequence generates, and its length."""
    salt[0] = s.invocation.salt if s.invocation.at else s.share.salt
    return s.invocation.n_salt if s.invocation.at else s.share.n_salt


cdef void answers_keep(answers_t *self, const sequence_t *s) noexcept nogil:
    """Keep what a sequence that has ended was answered, if anybody may ever be told. Without memory it is not kept, no
    more; nor is what has a salt so long that many others would have to go for it."""
    cdef int32_t i, n = s.tokens.n_certain - s.tokens.n_prompt
    cdef uint32_t place, head, mask = self.capacity - 1
    cdef const int32_t *text
    cdef answer_t *answer
    cdef const char *own
    cdef Py_ssize_t n_salt = salt_of(s, &own)
    cdef int64_t salt = salt_size(n_salt)
    if n < LEAST_KEPT or self.capacity == 0 or s.share.private or salt > self.salt_room // SALTS:
        return
    n = min(n, min(<int32_t> MOST_KEPT, <int32_t> (self.capacity // 4)))
    text = s.tokens.ids + s.tokens.n_certain - n
    # the token behind the last one is an END to whoever looks for what follows
    while self.n_answers and (
        self.n_answers == self.n_places or self.salt_bytes + salt > self.salt_room
        or self.n + <uint32_t> n + 2 - self.answers[self.oldest].first > self.capacity
    ):
        drop_oldest(self)
    answer = answer_at(self, self.n_answers)
    if n_salt:
        answer.salt = <char *> malloc(<size_t> n_salt)
        if answer.salt == NULL:
            return
        memcpy(answer.salt, own, <size_t> n_salt)
    answer.n_salt = n_salt
    answer.first = self.n + 1
    self.salt_bytes += salt
    self.n_answers += 1
    self.tokens[self.n & mask] = END
    self.n += 1
    for i in range(n):
        place = self.n & mask
        self.tokens[place] = text[i]
        if i >= GRAM - 1:
            head = head_of(self, s, text + i)
            self.before[place] = self.heads[head]
            self.heads[head] = self.n + 1
        self.n += 1
    self.tokens[self.n & mask] = END


cdef bint is_kept(const answers_t *self, uint32_t place) noexcept nogil:
    """Whether a token has not been overwritten, nor its answer dropped."""
    return self.n_answers > 0 and self.n - place <= self.n - self.answers[self.oldest].first


cdef answer_t *answer_at(const answers_t *self, int32_t i) noexcept nogil:
    """The answer that ``i`` older ones are kept before; the place of the next one, where that is all of them."""
    return &self.answers[(self.oldest + i) % self.n_places]


cdef const answer_t *answer_of(const answers_t *self, uint32_t place) noexcept nogil:
    """The answer that a token which is kept is of: the last one that begins no later."""
    cdef int32_t low = 0, high = self.n_answers - 1, middle
    while low < high:
        middle = (low + high + 1) // 2
        if self.n - answer_at(self, middle).first >= self.n - place:
            low = middle
        else:
            high = middle - 1
    return answer_at(self, low)


cdef bint may_tell(const answer_t *answer, const sequence_t *s) noexcept nogil:
    """Whether an answer is of the same salt."""
    cdef const char *own
    if answer.n_salt != salt_of(s, &own):
        return False
    return answer.n_salt == 0 or memcmp(answer.salt, own, <size_t> answer.n_salt) == 0


cdef void answers_propose(answers_t *self, const sequence_t *s, int32_t most, proposal_t *proposal) noexcept nogil:
    """Up to ``most`` tokens that followed the last ones of ``s`` in an answer that it may be told."""
    cdef match_t best
    cdef match_t found[CANDIDATES]
    cdef int32_t n, n_found = 0, left = CANDIDATES
    cdef uint32_t behind, mask = self.capacity - 1
    cdef const int32_t *end = s.tokens.ids + s.tokens.n_certain - 1
    proposal.n = 0
    memset(&best, 0, sizeof(match_t))
    if self.n_answers == 0 or s.tokens.n_certain < GRAM or s.share.private:
        return
    behind = self.heads[head_of(self, s, end)]
    while behind and left and is_kept(self, behind - 1):
        if may_tell(answer_of(self, behind - 1), s) and self.tokens[behind & mask] != END:
            n = 0
            while n < min(<int32_t> LONGEST_MATCH, s.tokens.n_certain) and (
                self.tokens[(behind - 1 - <uint32_t> n) & mask] == end[-n]
            ):
                n += 1
            match_add(&best, found, &n_found, -<int32_t> (self.n - behind), n, GRAM, self.tokens[behind & mask])
        behind = self.before[(behind - 1) & mask]
        left -= 1
    if best.n == 0:
        return
    proposal.n_matched = best.n
    proposal.first = match_agreed(&best, found, n_found)
    behind = self.n + <uint32_t> best.at
    while proposal.n < most and self.tokens[(behind + <uint32_t> proposal.n) & mask] != END:
        proposal.tokens[proposal.n] = self.tokens[(behind + <uint32_t> proposal.n) & mask]
        proposal.n += 1
