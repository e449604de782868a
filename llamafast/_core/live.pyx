"""The sequences that run and what they share.

A sequence that begins with tokens another one has, or is about to compute, does not compute them: it takes them with
llama_memory_seq_cp (in a unified cache that copies no data) once they are in memory, and until then it waits for the
other, its leader. So a burst of requests with one system prompt computes it once, the choices of one request compute
their prompt once, and a follow-up to a running answer takes that answer too.

Waiting has to pay: of two prefixes the one counts for more that has more tokens, those that are there already counted
twice. Whoever computes a prefix gets its rows no later than the waiting one would get rows of its own
(``live_goals``), so waiting never takes longer than computing again.

Recurrent state and what a sliding window has left behind cannot be cut back: there a sequence lends only what ends
exactly where it is, and stops its prompt's chunks where somebody waits for that.
"""
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memset

from .blocks cimport (
    BLOCK, OWNER_WORDS, block_hash, blocks_find, blocks_free, blocks_init, blocks_insert, blocks_remove, common_run,
)
from .context cimport UNLIMITED
from .headers.llama cimport (
    LLAMA_MAX_SEQ, llama_memory_clear, llama_memory_seq_cp, llama_memory_seq_rm, llama_memory_t,
)
from .invocation cimport invocations_part
from .sequence cimport (
    PHASE_DECODING, PHASE_ENDED, PHASE_FOLLOWING, PHASE_PARKED, PHASE_PREFILLING, PHASE_RESTORING, PHASE_WAITING,
    sequence_enter, sequence_position, sequence_reach, sequence_t, share_t,
)
from .spans cimport cut_before, span_behind, span_t


cdef int live_init(
    live_t *self, llama_memory_t memory, bint unified, int32_t n_cuttable, int32_t n_seq_max
) noexcept nogil:
    """For a zeroed struct and sequence ids below ``n_seq_max``: 0, or -1 when out of memory."""
    cdef int32_t i
    self.memory = memory
    self.unified = unified
    self.n_cuttable = n_cuttable
    self.n_seq_max = self.n_free = n_seq_max
    for i in range(n_seq_max):
        self.free_seq_ids[i] = n_seq_max - 1 - i
    return blocks_init(&self.blocks)


cdef void live_free(live_t *self) noexcept nogil:
    blocks_free(&self.blocks)


cdef void live_add(live_t *self, sequence_t *s, int32_t n_restore) noexcept nogil:
    """Let a sequence run; there is a free sequence id. It waits for ``n_restore`` tokens to be restored."""
    self.n_free -= 1
    s.seq_id = self.free_seq_ids[self.n_free]
    self.states[self.n] = s
    self.by_seq_id[s.seq_id] = s
    self.n += 1
    s.share.n_restore = n_restore
    s.share.n_runs += 1
    if s.share.n_runs == 1:
        self.queries += s.tokens.n_prompt
    share(self, s, self.n - 1)
    settle(s)


cdef void live_remove(live_t *self, sequence_t *s) noexcept nogil:
    """Take a sequence out and free its memory. Who waited for it takes what there is, looks further."""
    cdef int32_t i, place = 0
    cdef sequence_t *other
    forget(self, s)
    for i in range(self.n):
        other = self.states[i]
        if other == s:
            place = i
        elif other.share.leader == s.seq_id:
            other.share.leader = -1
            # between partitions the data is copied by the next llama_decode: too late when its owner has left
            if self.unified:
                fork_from(self, s, other)
            share(self, other, i)
            settle(other)
    self.n -= 1
    for i in range(place, self.n):
        self.states[i] = self.states[i + 1]
    llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
    leave(self, s)


cdef void live_clear(live_t *self) noexcept nogil:
    """Take everybody out and empty the memory."""
    cdef int32_t i
    llama_memory_clear(self.memory, False)
    for i in range(self.n):
        forget(self, self.states[i])
        leave(self, self.states[i])
    self.n = 0


cdef void leave(live_t *self, sequence_t *s) noexcept nogil:
    """Take a sequence's id and what it waited for: it has no memory any more."""
    self.by_seq_id[s.seq_id] = NULL
    self.free_seq_ids[self.n_free] = s.seq_id
    self.n_free += 1
    s.seq_id = s.share.leader = -1
    s.share.n_restore = 0
    sequence_reach(s, 0)
    s.rolled_back = False
    if s.phase != PHASE_ENDED:
        sequence_enter(s, PHASE_WAITING)


cdef void settle(sequence_t *s) noexcept nogil:
    """Into the phase of what a sequence waits for; who waits for nobody any more prefills."""
    if s.phase == PHASE_ENDED:
        return
    if live_is_restoring(s):
        sequence_enter(s, PHASE_RESTORING)
    elif s.share.leader >= 0:
        sequence_enter(s, PHASE_FOLLOWING)
    else:
        sequence_enter(s, PHASE_PREFILLING)


cdef void live_restore(live_t *self, sequence_t *s, int32_t n_past, bint done) noexcept nogil:
    """A sequence's first ``n_past`` tokens are in memory after a part was restored; what is missing, where that was not
    ``done``, it computes."""
    cdef int32_t before = s.tokens.n_past
    sequence_reach(s, n_past)
    if not done:
        s.share.n_restore = n_past
        llama_memory_seq_rm(self.memory, s.seq_id, sequence_position(s, n_past), -1)
    if s.share.n_runs == 1:
        s.share.n_cached += n_past - before
        self.restored += n_past - before
    settle(s)


cdef void live_grow(live_t *self, sequence_t *s, int32_t n_before) noexcept nogil:
    """A sequence that had ``n_before`` tokens got more, and goes on where it has not ended: one that has all it may
    have waits for its grammar's word on that."""
    if s.phase != PHASE_ENDED and s.tokens.n_certain == s.tokens.n_max:
        sequence_enter(s, PHASE_PARKED)
    elif s.phase != PHASE_ENDED and s.tokens.n_past < s.tokens.n_certain:
        # else the row of its last token is there already, and waits for a mask
        sequence_enter(s, PHASE_DECODING)
    if s.tokens.n_certain // BLOCK > n_before // BLOCK:
        note_blocks(self, s)


cdef void note_blocks(live_t *self, sequence_t *s) noexcept nogil:
    """Index the whole blocks of a sequence that are not indexed yet."""
    cdef int32_t first = s.share.n_blocks
    hash_blocks(s)
    index_blocks(self, s, first)


cdef int hash_blocks(sequence_t *s) noexcept nogil:
    """Bring ``hashes`` up to the whole blocks of what is certain: 0, or -1 when out of memory."""
    cdef share_t *share = &s.share
    cdef int32_t n_blocks = s.tokens.n_certain // BLOCK
    cdef uint64_t parent
    cdef uint64_t *grown
    if n_blocks > share.n_blocks:
        grown = <uint64_t *> realloc(share.hashes, <size_t> (s.tokens.capacity // BLOCK + 1) * sizeof(uint64_t))
        if grown == NULL:
            return -1
        share.hashes = grown
    while share.n_blocks < n_blocks:
        parent = share.hashes[share.n_blocks - 1] if share.n_blocks else share.seed
        if s.invocation.at and share.n_blocks == s.invocation.at // BLOCK:
            # this one, and all behind it, are those of whoever invokes the same
            parent ^= s.invocation.seed
        share.hashes[share.n_blocks] = block_hash(parent, s.tokens.ids + share.n_blocks * BLOCK)
        share.n_blocks += 1
    return 0


cdef void index_blocks(live_t *self, sequence_t *s, int32_t first) noexcept nogil:
    """Index a sequence's hashed blocks from ``first`` on. Without memory they stay unknown, no more."""
    cdef int32_t i
    for i in range(first, s.share.n_blocks):
        if blocks_insert(&self.blocks, s.seq_id, s.share.hashes[i]) < 0:
            s.share.n_blocks = i
            return


cdef void live_follow(live_t *self, sequence_t *s) noexcept nogil:
    """Let a sequence that follows take the shared prefix, once its leader has computed it.

    Just before llama_decode only: between partitions it is llama_decode that copies the data.
    """
    cdef sequence_t *leader = self.by_seq_id[s.share.leader]
    # between partitions it waits for rows of media before, and not behind: data are copied by the step that follows
    if leader.tokens.n_past >= s.share.n_shared and (self.unified or not lacks_rows(s, s.share.n_shared)):
        s.share.leader = -1
        fork_from(self, leader, s)
        settle(s)


cdef bint lacks_rows(const sequence_t *s, int32_t n) noexcept nogil:
    """Whether its token ``n`` is a row of media that is not here."""
    cdef const span_t *span
    if s.tokens.n_spans == 0:
        return False
    span = span_behind(s.tokens.spans, s.tokens.n_spans, n)
    return span != NULL and span.row <= n and span.rows == NULL


cdef int32_t live_stop(const live_t *self, const sequence_t *s, int32_t take) noexcept nogil:
    """How many of its next ``take`` tokens a sequence may compute before its state must be copied or saved."""
    cdef int32_t i
    cdef sequence_t *other
    if self.n_cuttable == UNLIMITED:
        return take
    if s.tokens.save_at > s.tokens.n_past:
        take = min(take, s.tokens.save_at - s.tokens.n_past)
    for i in range(self.n):
        other = self.states[i]
        if other.share.leader == s.seq_id and other.share.n_shared > s.tokens.n_past:
            take = min(take, other.share.n_shared - s.tokens.n_past)
    return take


cdef void live_goals(live_t *self) noexcept nogil:
    """Bring everybody's ``goal`` up to date: the next length at which somebody can go on."""
    cdef int32_t i
    cdef sequence_t *s
    cdef sequence_t *leader
    for i in range(self.n):
        self.states[i].share.goal = self.states[i].tokens.n_tokens
    for i in range(self.n):
        s = self.states[i]
        if s.share.leader >= 0:
            leader = self.by_seq_id[s.share.leader]
            if leader.tokens.n_past < s.share.n_shared < leader.share.goal:
                leader.share.goal = s.share.n_shared


cdef void forget(live_t *self, sequence_t *s) noexcept nogil:
    cdef int32_t i
    for i in range(s.share.n_blocks):
        blocks_remove(&self.blocks, s.seq_id, s.share.hashes[i])
    s.share.n_blocks = 0


cdef void share(live_t *self, sequence_t *s, int32_t place) noexcept nogil:
    """Find ``states[place]`` somebody to take its prefix from, then make its own tokens known."""
    forget(self, s)
    hash_blocks(s)
    follow(self, s, place)
    index_blocks(self, s, 0)


cdef void follow(live_t *self, sequence_t *s, int32_t place) noexcept nogil:
    """Find the prefix worth most that a sequence admitted before ``place`` has or will have; take it or wait for it.

    Waiting only for those before it, no two sequences ever wait for each other.
    """
    cdef loan_t loan = best_before(self, s, place)
    if loan.lender != NULL and loan.n_shared + loan.n_there > 2 * max(s.tokens.n_past, s.share.n_restore):
        s.share.leader = loan.lender.seq_id
        s.share.n_shared = loan.n_shared


cdef loan_t best_before(const live_t *self, const sequence_t *s, int32_t place) noexcept nogil:
    """What ``states[:place]`` can lend the hashed tokens of ``s``; without a lender: nothing. A prompt that is scored
    is lent nothing: each of its rows has to give logits."""
    cdef uint64_t before[OWNER_WORDS]
    cdef int32_t depths[LLAMA_MAX_SEQ]
    cdef int32_t i
    cdef sequence_t *other
    cdef loan_t best, loan
    memset(&best, 0, sizeof(best))
    if s.out.logprobs.n_scored < s.tokens.n_prompt:
        return best
    memset(before, 0, sizeof(before))
    for i in range(place):
        before[self.states[i].seq_id >> 6] |= <uint64_t> 1 << (self.states[i].seq_id & 63)
    blocks_find(&self.blocks, s.share.hashes, s.share.n_blocks, before, depths)
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
    cdef int32_t limit = min(
        invocations_part(&s.invocation, &other.invocation), min(s.tokens.n_certain - 1, other.tokens.n_certain))
    loan.lender = other
    loan.n_shared = min(n_alike, limit)
    loan.n_shared += common_run(s.tokens.ids + loan.n_shared, other.tokens.ids + loan.n_shared, limit - loan.n_shared)
    loan.n_shared = cut_before(s.tokens.ids, s.tokens.n_tokens, loan.n_shared)
    loan.n_there = min(loan.n_shared, max(other.tokens.n_past, other.share.n_restore))
    if not lends(self, other, loan.n_shared):
        loan.n_shared = loan.n_there = 0
    return loan


cdef bint begins_alike(const sequence_t *s, const sequence_t *other, int32_t n) noexcept nogil:
    """Whether they may share their first ``n`` tokens, and have them in common."""
    return (
        n <= invocations_part(&s.invocation, &other.invocation)
        and s.share.n_salt == other.share.n_salt and memcmp(s.share.salt, other.share.salt, s.share.n_salt) == 0
        and memcmp(s.tokens.ids, other.tokens.ids, n * sizeof(int32_t)) == 0
    )


cdef loan_t live_loan(const live_t *self, sequence_t *s) noexcept nogil:
    """What those who run can lend a sequence that does not run yet."""
    cdef loan_t loan
    hash_blocks(s)
    loan = best_before(self, s, self.n)
    s.share.n_blocks = 0
    return loan


cdef bint lends(const live_t *self, const sequence_t *other, int32_t n) noexcept nogil:
    """Whether a sequence's first ``n`` tokens, once it has them, can be copied without the rest."""
    cdef int32_t reach = max(other.tokens.n_past, other.share.n_restore)
    if other.rolled_back and n == other.tokens.n_past:
        return False
    if other.share.leader >= 0:
        reach = max(reach, other.share.n_shared)
    return reach <= n or reach <= self.n_cuttable


cdef void fork_from(live_t *self, sequence_t *leader, sequence_t *s) noexcept nogil:
    """Give ``s`` what its former leader has computed of the shared prefix, if that can be copied."""
    cdef int32_t n = cut_before(s.tokens.ids, s.tokens.n_tokens, min(leader.tokens.n_past, s.share.n_shared))
    cdef bint whole = not self.unified or leader.tokens.n_past > self.n_cuttable
    if n <= s.tokens.n_past or (leader.tokens.n_past > n and leader.tokens.n_past > self.n_cuttable):
        return
    if leader.rolled_back:
        return
    if whole:
        llama_memory_seq_rm(self.memory, s.seq_id, -1, -1)
        llama_memory_seq_cp(self.memory, leader.seq_id, s.seq_id, -1, -1)
        if leader.tokens.n_past > n:
            llama_memory_seq_rm(self.memory, s.seq_id, sequence_position(s, n), -1)
    else:
        llama_memory_seq_cp(
            self.memory, leader.seq_id, s.seq_id, sequence_position(s, s.tokens.n_past), sequence_position(s, n))
    self.forks += 1
    if s.share.n_runs == 1:
        self.hits += n - s.tokens.n_past
        s.share.n_cached += n - s.tokens.n_past
        s.share.n_lent += n - s.tokens.n_past
        s.share.lender = leader.tag
    sequence_reach(s, n)
