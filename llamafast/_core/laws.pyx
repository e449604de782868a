"""Whether the lists of who runs agree, and whether every sequence keeps the laws that sequence.pxd states."""
from libc.stdint cimport int32_t

from .blocks cimport blocks_has, blocks_n_owners
from .headers.llama cimport llama_memory_seq_pos_max
from .live cimport live_is_restoring, live_t
from .sequence cimport (
    FINISH_NONE, PHASE_ENDED, PHASE_FOLLOWING, PHASE_PARKED, PHASE_RESTORING, PHASE_WAITING, sequence_end,
    sequence_t,
)


cdef str broken_law(const live_t *self):
    """What the lists of who runs disagree on, or which law a sequence has broken; None where all is well.

    Between two steps only.
    """
    cdef int32_t i, n_blocks = 0, n_ids = 0
    cdef const sequence_t *s
    for i in range(self.n_seq_max):
        n_ids += self.by_seq_id[i] != NULL
    if self.n + self.n_free != self.n_seq_max or n_ids != self.n:
        return f"{self.n} run with {n_ids} sequence ids, {self.n_free} of {self.n_seq_max} are free"
    for i in range(self.n_free):
        if self.by_seq_id[self.free_seq_ids[i]] != NULL:
            return f"sequence id {self.free_seq_ids[i]} is free and taken"
        if llama_memory_seq_pos_max(self.memory, self.free_seq_ids[i]) >= 0:
            return f"sequence id {self.free_seq_ids[i]} is free and has memory"
    for i in range(self.n):
        s = self.states[i]
        n_blocks += s.share.n_blocks
        fault = sequence_fault(self, s, i)
        if fault is not None:
            return f"sequence {s.tag}, phase {s.phase}: {fault}"
    if blocks_n_owners(&self.blocks) != n_blocks:
        return f"{blocks_n_owners(&self.blocks)} blocks are known of, they have {n_blocks}"
    return None


cdef str sequence_fault(const live_t *self, const sequence_t *s, int32_t place):
    """The same of the sequence in ``states[place]``."""
    cdef int32_t i, end = llama_memory_seq_pos_max(self.memory, s.seq_id) + 1
    cdef bint waits = live_is_restoring(s)
    if self.by_seq_id[s.seq_id] != s:
        return f"its sequence id {s.seq_id} is another's"
    if s.astray:
        return "it went where it must not go"
    if not 0 <= s.tokens.n_past <= s.tokens.n_certain <= s.tokens.n_tokens <= s.tokens.n_max:
        return f"{s.tokens.n_past} tokens in memory, {s.tokens.n_certain} certain, {s.tokens.n_tokens} in all"
    if s.tokens.n_certain != s.tokens.n_tokens:
        return f"{s.tokens.n_tokens - s.tokens.n_certain} drafted tokens outlived their step"
    if end != sequence_end(s, s.tokens.n_past):
        return f"its memory ends at {end}, of {s.tokens.n_past} tokens"
    if (s.phase == PHASE_ENDED) != (s.out.finish != FINISH_NONE) or s.phase == PHASE_WAITING:
        return f"it runs, and its finish is {s.out.finish}"
    if s.phase == PHASE_PARKED and s.out.constraint == NULL:
        return "it waits for a mask without a constraint"
    if s.phase not in (PHASE_PARKED, PHASE_ENDED):
        if (s.phase == PHASE_RESTORING) != waits or (s.phase == PHASE_FOLLOWING) != (s.share.leader >= 0 and not waits):
            return f"{s.tokens.n_past} of {s.share.n_restore} tokens are restored, its leader is {s.share.leader}"
        if s.tokens.n_past == s.tokens.n_tokens:
            return "it has no row to compute"
    if s.share.leader >= 0:
        for i in range(place):
            if self.states[i].seq_id == s.share.leader:
                break
        else:
            return f"its leader {s.share.leader} was not admitted before it"
    for i in range(s.share.n_blocks):
        if not blocks_has(&self.blocks, s.seq_id, s.share.hashes[i]):
            return f"its block {i} is not known of"
    return None
