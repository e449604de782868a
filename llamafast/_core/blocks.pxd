# The index of running prefixes: which blocks of tokens there are, and who has them.
from libc.stdint cimport int32_t, uint64_t

from .headers.llama cimport LLAMA_MAX_SEQ

cdef enum:
    BLOCK = 16          # tokens of a block
    OWNER_WORDS = LLAMA_MAX_SEQ // 64   # a bit for each sequence id

# Open addressing with linear probing; a power of two of slots, at most half of them used.
cdef struct slot_t:
    uint64_t hash               # of a block and everything before it; 0: free
    uint64_t owners[OWNER_WORDS]  # bit i: sequence id i has this block

cdef struct blocks_t:
    slot_t *slots
    int32_t capacity
    int32_t used

cdef int blocks_init(blocks_t *self) noexcept nogil
cdef void blocks_free(blocks_t *self) noexcept nogil
cdef int blocks_insert(blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil
cdef void blocks_remove(blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil
cdef void blocks_find(
    const blocks_t *self, const uint64_t *hashes, int32_t n_blocks, const uint64_t *allowed, int32_t *depths
) noexcept nogil
cdef bint blocks_has(const blocks_t *self, int32_t owner, uint64_t hash) noexcept nogil
cdef int32_t blocks_n_owners(const blocks_t *self) noexcept nogil
cdef uint64_t block_hash(uint64_t parent, const int32_t *tokens) noexcept nogil
cdef int32_t common_run(const int32_t *a, const int32_t *b, int32_t limit) noexcept nogil
