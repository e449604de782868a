"""Which sequences have which prefix: blocks of 16 tokens, hashed in a chain, each with the set of its owners.

The chain (vLLM's idea) makes a block's hash name everything before it, so one probe a block is enough. A look-up
walks a prompt's blocks until one is unknown, O(n / 16) whatever the number of sequences, and notes where it loses
each owner. A hash only finds: the caller compares tokens before it believes it, and goes on token by token from
there.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from .headers.llama cimport LLAMA_MAX_SEQ
from .headers.xxh3 cimport XXH3_WORDS, xxh3_72_bytes

cdef extern from *:
    int popcount "__builtin_popcountll"(uint64_t bits) noexcept nogil

cdef enum:
    # tokens that are compared at once where much is in common
    RUN = 16 * BLOCK


cdef uint64_t block_hash(uint64_t parent, const int32_t *tokens) noexcept nogil:
    """The digest of BLOCK tokens after the chain ``parent`` (a first block's parent is a seed); never 0.

    It is XXH3-64 of the parent as eight bytes and the tokens as four each, little-endian: docs/decisions/01-digests.md.
    """
    cdef uint64_t words[XXH3_WORDS]
    cdef uint64_t hash
    cdef int i
    words[0] = parent
    for i in range(BLOCK // 2):
        words[i + 1] = <uint64_t> <uint32_t> tokens[2 * i] | <uint64_t> <uint32_t> tokens[2 * i + 1] << 32
    hash = xxh3_72_bytes(words)
    return hash if hash else 1


cdef int blocks_init(blocks_t *self) noexcept nogil:
    """0, or -1 when out of memory."""
    self.capacity = 1024
    self.used = 0
    self.slots = <slot_t *> calloc(self.capacity, sizeof(slot_t))
    return 0 if self.slots != NULL else -1


cdef void blocks_free(blocks_t *self) noexcept nogil:
    free(self.slots)
    self.slots = NULL


cdef slot_t *blocks_probe(const blocks_t *self, uint64_t hash) noexcept nogil:
    """The slot of ``hash``, or the free one where it would go."""
    cdef int32_t mask = self.capacity - 1
    cdef int32_t i = <int32_t> (hash & <uint64_t> mask)
    while self.slots[i].hash != 0 and self.slots[i].hash != hash:
        i = (i + 1) & mask
    return &self.slots[i]


cdef int blocks_grow(blocks_t *self) noexcept nogil:
    cdef blocks_t larger
    cdef int32_t i
    larger.capacity = 2 * self.capacity
    larger.used = self.used
    larger.slots = <slot_t *> calloc(larger.capacity, sizeof(slot_t))
    if larger.slots == NULL:
        return -1
    for i in range(self.capacity):
        if self.slots[i].hash != 0:
            blocks_probe(&larger, self.slots[i].hash)[0] = self.slots[i]
    free(self.slots)
    self[0] = larger
    return 0


cdef int blocks_insert(blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil:
    """Note that ``owner`` has the block: 0, or -1 when out of memory (nothing is noted then)."""
    cdef slot_t *slot
    if 2 * (self.used + 1) > self.capacity and blocks_grow(self) < 0:
        return -1
    slot = blocks_probe(self, hash)
    if slot.hash == 0:
        slot.hash = hash
        self.used += 1
    slot.owners[owner >> 6] |= <uint64_t> 1 << (owner & 63)
    return 0


cdef void blocks_remove(blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil:
    """Forget that ``owner`` has the block; a block without owners leaves the table."""
    cdef slot_t *slot = blocks_probe(self, hash)
    cdef int32_t mask = self.capacity - 1
    cdef int32_t hole, i, home
    if slot.hash == 0:
        return
    slot.owners[owner >> 6] &= ~(<uint64_t> 1 << (owner & 63))
    for i in range(OWNER_WORDS):
        if slot.owners[i]:
            return
    # Close the hole: move back whatever was pushed past it (Knuth, TAOCP 3, 6.4, algorithm R).
    hole = <int32_t> (slot - self.slots)
    i = (hole + 1) & mask
    while self.slots[i].hash != 0:
        home = <int32_t> (self.slots[i].hash & <uint64_t> mask)
        if ((i - home) & mask) >= ((i - hole) & mask):
            self.slots[hole] = self.slots[i]
            hole = i
        i = (i + 1) & mask
    memset(&self.slots[hole], 0, sizeof(slot_t))
    self.used -= 1


cdef void blocks_find(
    const blocks_t *self, const uint64_t *hashes, int32_t n_blocks, const uint64_t *allowed, int32_t *depths
) noexcept nogil:
    """How many of the leading blocks each owner has: ``depths`` becomes (LLAMA_MAX_SEQ,) of that, 0 for those who are
    not among ``allowed``, (OWNER_WORDS,) bits.
    """
    cdef int32_t n, k
    cdef uint64_t some, had
    cdef uint64_t owners[OWNER_WORDS]
    cdef slot_t *slot
    memset(depths, 0, LLAMA_MAX_SEQ * sizeof(int32_t))
    memcpy(owners, allowed, sizeof(owners))
    for n in range(n_blocks):
        slot = blocks_probe(self, hashes[n])
        some = 0
        for k in range(OWNER_WORDS):
            had = owners[k]
            owners[k] &= slot.owners[k]
            some |= owners[k]
            note_depth(depths + 64 * k, had & ~owners[k], n)
        if some == 0:
            return
    for k in range(OWNER_WORDS):
        note_depth(depths + 64 * k, owners[k], n_blocks)


cdef bint blocks_has(const blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil:
    """Whether it is noted that ``owner`` has the block."""
    return blocks_probe(self, hash).owners[owner >> 6] >> (owner & 63) & 1


cdef int32_t blocks_n_owners(const blocks_t *self) noexcept nogil:
    """How many owners the blocks have, all together."""
    cdef int32_t i, k, n = 0
    for i in range(self.capacity):
        for k in range(OWNER_WORDS):
            n += popcount(self.slots[i].owners[k])
    return n


cdef void note_depth(int32_t *depths, uint64_t owners, int32_t depth) noexcept nogil:
    """Set ``depths`` at the bits of ``owners``."""
    cdef int i
    if owners == 0:
        return
    for i in range(64):
        if owners >> i & 1:
            depths[i] = depth


cdef int32_t common_run(const int32_t *a, const int32_t *b, int32_t limit) noexcept nogil:
    """How many of ``limit`` tokens two arrays begin with in common."""
    cdef int32_t i = 0
    while i + RUN <= limit and memcmp(a + i, b + i, RUN * sizeof(int32_t)) == 0:
        i += RUN
    while i + BLOCK <= limit and memcmp(a + i, b + i, BLOCK * sizeof(int32_t)) == 0:
        i += BLOCK
    while i < limit and a[i] == b[i]:
        i += 1
    return i
