"""The sequences that run and what they share.

A sequence that begins with tokens another one has, or is about to compute, does not compute them: it takes them with
llama_memory_seq_cp (in a unified cache that copies no data) once they are in memory, and until then it waits for the
other, its leader. So a burst of requests with one system prompt computes it once, the choices of one request compute
their prompt once, and a follow-up to a running answer takes that answer too.

Waiting has to pay: of two prefixes the one counts for more that has more tokens, those that are there already counted
twice. Whoever computes a prefix gets its rows no later than the waiting one would get rows of its own
(``live_goals``), so waiting never takes longer than computing again. Where the Prefiller computes it, whose batches
are long, fewer than ``least_wait`` tokens are not waited for.

Recurrent state and what a sliding window has left behind cannot be cut back: there a sequence lends only what ends
exactly where it is, and stops its prompt's chunks where somebody waits for that.
"""
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcmp, memset

from .blocks cimport (
    BLOCK, OWNER_WORDS, blocks_find, blocks_free, blocks_init, blocks_insert, blocks_remove, common_run,
)
from .context cimport UNLIMITED
from .headers.llama cimport LLAMA_MAX_SEQ, llama_memory_clear, llama_memory_seq_cp, llama_memory_seq_rm, llama_memory_t
from .sequence cimport sequence_hash, sequence_t


cdef int live_init(live_t *self, llama_memory_t memory, bint unified, int32_t n_cuttable) noexcept nogil:
    """For a zeroed struct: 0, or -1 when out of memory."""
    self.memory = memory
    self.unified = unified
    self.n_cuttable = n_cuttable
    return blocks_init(&self.blocks)


cdef void live_free(live_t *self) noexcept nogil:
    blocks_free(&self.blocks)


cdef void live_add(live_t *self, sequence_t *s) noexcept nogil:
    """Append a sequence whose seq_id is its own and without memory yet."""
    self.states[self.n] = s
    self.by_seq_id[s.seq_id] = s
    self.n += 1
    s.n_runs += 1
    if s.n_runs == 1:
        self.queries += s.n_prompt
    share(self, s, self.n - 1)


cdef void live_remove(live_t *self, sequence_t *s) noexcept nogil:
    """Take a sequence out; its memory is the caller's to free. Who waited for it takes what there is, looks further."""
    cdef int32_t i, place = 0
    cdef sequence_t *other
    forget(self, s)
    for i in range(self.n):
        other = self.states[i]
        if other == s:
            place = i
        elif other.leader == s.seq_id:
            other.leader = -1
            # between partitions the data is copied by the next llama_decode: too late when its owner has left
            if self.unified:
                fork_from(self, s, other)
            share(self, other, i)
    self.n -= 1
    for i in range(place, self.n):
        self.states[i] = self.states[i + 1]
    s.leader = -1


cdef void live_clear(live_t *self) noexcept nogil:
    """Take everybody out and empty the memory."""
    cdef int32_t i
    llama_memory_clear(self.memory, False)
    for i in range(self.n):
        forget(self, self.states[i])
        self.states[i].leader = -1
        self.states[i].apart = False
        self.states[i].n_past = self.states[i].n_restore = 0
    self.n = 0


cdef void live_note(live_t *self, sequence_t *s) noexcept nogil:
    """Index the whole blocks of a sequence that are not indexed yet."""
    cdef int32_t first = s.n_blocks
    sequence_hash(s)
    index_blocks(self, s, first)


cdef void index_blocks(live_t *self, sequence_t *s, int32_t first) noexcept nogil:
    """Index a sequence's hashed blocks from ``first`` on. Without memory they stay unknown, no more."""
    cdef int32_t i
    for i in range(first, s.n_blocks):
        if blocks_insert(&self.blocks, s.seq_id, s.hashes[i]) < 0:
            s.n_blocks = i
            return


cdef bint live_ready(live_t *self, sequence_t *s) noexcept nogil:
    """Whether a sequence waits for nobody; fetches the shared prefix once its leader has computed it.

    Just before llama_decode only: between partitions it is llama_decode that copies the data.
    """
    cdef sequence_t *leader
    # whose prompt is computed apart may have all but its last token, which the Prefiller is about to choose from
    if s.n_past < s.n_restore or s.apart:
        return False
    if s.leader < 0:
        return True
    leader = self.by_seq_id[s.leader]
    if leader.n_past < s.n_shared:
        return False
    s.leader = -1
    fork_from(self, leader, s)
    return True


cdef int32_t live_stop(const live_t *self, const sequence_t *s, int32_t take) noexcept nogil:
    """How many of its next ``take`` tokens a sequence may compute before its state must be copied or saved."""
    cdef int32_t i
    cdef sequence_t *other
    if self.n_cuttable == UNLIMITED:
        return take
    if s.save_at > s.n_past:
        take = min(take, s.save_at - s.n_past)
    for i in range(self.n):
        other = self.states[i]
        if other.leader == s.seq_id and other.n_shared > s.n_past:
            take = min(take, other.n_shared - s.n_past)
    return take


cdef void live_goals(live_t *self) noexcept nogil:
    """Bring everybody's ``goal`` up to date: the next length at which somebody can go on."""
    cdef int32_t i
    cdef sequence_t *s
    cdef sequence_t *leader
    for i in range(self.n):
        self.states[i].goal = self.states[i].n_tokens
    for i in range(self.n):
        s = self.states[i]
        if s.leader >= 0:
            leader = self.by_seq_id[s.leader]
            if leader.n_past < s.n_shared < leader.goal:
                leader.goal = s.n_shared


cdef void forget(live_t *self, sequence_t *s) noexcept nogil:
    cdef int32_t i
    for i in range(s.n_blocks):
        blocks_remove(&self.blocks, s.seq_id, s.hashes[i])
    s.n_blocks = 0


cdef void share(live_t *self, sequence_t *s, int32_t place) noexcept nogil:
    """Find ``states[place]`` somebody to take its prefix from, then make its own tokens known."""
    forget(self, s)
    sequence_hash(s)
    follow(self, s, place)
    index_blocks(self, s, 0)


cdef void follow(live_t *self, sequence_t *s, int32_t place) noexcept nogil:
    """Find the prefix worth most that a sequence admitted before ``place`` has or will have; take it or wait for it.

    Waiting only for those before it, no two sequences ever wait for each other.
    """
    cdef loan_t loan = best_before(self, s, place)
    if loan.lender != NULL and loan.n_shared + loan.n_there > 2 * max(s.n_past, s.n_restore):
        s.leader = loan.lender.seq_id
        s.n_shared = loan.n_shared


cdef loan_t best_before(const live_t *self, const sequence_t *s, int32_t place) noexcept nogil:
    """What ``states[:place]`` can lend the hashed tokens of ``s``; without a lender: nothing."""
    cdef uint64_t before[OWNER_WORDS]
    cdef int32_t depths[LLAMA_MAX_SEQ]
    cdef int32_t i
    cdef sequence_t *other
    cdef loan_t best, loan
    memset(&best, 0, sizeof(best))
    memset(before, 0, sizeof(before))
    for i in range(place):
        before[self.states[i].seq_id >> 6] |= <uint64_t> 1 << (self.states[i].seq_id & 63)
    blocks_find(&self.blocks, s.hashes, s.n_blocks, before, depths)
    for i in range(place):
        other = self.states[i]
        if depths[other.seq_id]:
            loan = loan_of(self, s, other, depths[other.seq_id] * BLOCK)
            if loan.n_shared + loan.n_there > best.n_shared + best.n_there:
                best = loan
    # a hash only finds
    if best.lender != NULL and not begins_alike(s, best.lender, best.n_shared):
        memset(&best, 0, sizeof(best))
    return best


cdef loan_t loan_of(const live_t *self, const sequence_t *s, sequence_t *other, int32_t n_alike) noexcept nogil:
    """What ``other``, whose first ``n_alike`` tokens have the hashes of those of ``s``, can lend, and how much of it
    without waiting for more than a restore. The last token of ``s`` never counts: it is always computed, as logits are
    not kept.
    """
    cdef loan_t loan
    cdef int32_t there = other.n_past if other.apart else max(other.n_past, other.n_restore)
    cdef int32_t limit = min(s.n_tokens - 1, other.n_tokens)
    loan.lender = other
    loan.n_shared = min(n_alike, limit)
    loan.n_shared += common_run(s.tokens + loan.n_shared, other.tokens + loan.n_shared, limit - loan.n_shared)
    loan.n_there = min(loan.n_shared, there)
    # who waits itself may wait for the Prefiller
    if (other.apart or other.leader >= 0) and loan.n_shared - loan.n_there < self.least_wait:
        loan.n_shared = loan.n_there
    if not lends(self, other, loan.n_shared):
        loan.n_shared = loan.n_there = 0
    return loan


cdef bint begins_alike(const sequence_t *s, const sequence_t *other, int32_t n) noexcept nogil:
    """Whether they may share, and have their first ``n`` tokens in common."""
    return (
        s.n_salt == other.n_salt and memcmp(s.salt, other.salt, s.n_salt) == 0
        and memcmp(s.tokens, other.tokens, n * sizeof(int32_t)) == 0
    )


cdef loan_t live_loan(const live_t *self, sequence_t *s) noexcept nogil:
    """What those who run can lend a sequence that does not run yet."""
    cdef loan_t loan
    sequence_hash(s)
    loan = best_before(self, s, self.n)
    s.n_blocks = 0
    return loan


cdef bint lends(const live_t *self, const sequence_t *other, int32_t n) noexcept nogil:
    """Whether a sequence's first ``n`` tokens, once it has them, can be copied without the rest."""
    cdef int32_t reach = max(other.n_past, other.n_restore)
    if other.leader >= 0:
        reach = max(reach, other.n_shared)
    return reach <= n or reach <= self.n_cuttable


cdef void fork_from(live_t *self, sequence_t *leader, sequence_t *s) noexcept nogil:
    """Give ``s`` what its former leader has computed of the shared prefix, if that can be copied."""
    cdef int32_t n = min(leader.n_past, s.n_shared)
    cdef bint whole = not self.unified or leader.n_past > self.n_cuttable
    if n <= s.n_past or (leader.n_past > n and leader.n_past > self.n_cuttable):
        return
    if whole:
        llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        llama_memory_seq_cp(self.memory, leader.seq_id, s.seq_id, -1, -1)
        if leader.n_past > n:
            llama_memory_seq_rm(self.memory, s.seq_id, n, -1)
    else:
        llama_memory_seq_cp(self.memory, leader.seq_id, s.seq_id, s.n_past, n)
    self.forks += 1
    if s.n_runs == 1:
        self.hits += n - s.n_past
        s.n_cached += n - s.n_past
        s.n_lent += n - s.n_past
    s.n_past = n
