"""What the last steps computed for whom, and how far those are who run: numbers only, for whoever looks on.

A step leaves a few words for each sequence that has rows in it. Reading them takes no lock, and no step waits for it.
"""
from libc.stdint cimport int32_t, int64_t

from .headers.atomic cimport count_load, count_store
from .headers.clock cimport now
from .live cimport live_t
from .sequence cimport PHASE_DECODING, sequence_t


cdef void glance_part(glance_t *self, const sequence_t *s, bint media) noexcept nogil:
    """The rows of ``s`` have been computed, of ``media`` or of tokens, and nothing has come of them yet."""
    cdef part_seen_t *part = &self.parts[self.n_parts % N_PARTS_SEEN]
    part.tag = s.tag
    part.seq_id = s.seq_id
    part.n_rows = s.rows.n
    part.n_drafted = s.rows.n_drafted
    if media:
        part.kind = PART_MEDIA
    elif s.phase == PHASE_DECODING and s.tokens.n_past - (s.rows.n - s.rows.n_drafted) >= s.tokens.n_prompt:
        part.kind = PART_DECODE
    else:
        part.kind = PART_PROMPT
    count_store(&self.n_parts, self.n_parts + 1)


cdef void glance_step(glance_t *self, double seconds) noexcept nogil:
    """The step of the parts since the last one is over."""
    cdef step_seen_t *step = &self.steps[self.n_steps % N_STEPS_SEEN]
    step.end_part = self.n_parts
    step.seconds = <float> seconds
    count_store(&self.n_steps, self.n_steps + 1)


cdef tuple glance_steps(glance_t *self, int32_t most, int32_t most_parts):
    """How many steps there have been, and the last ``most`` of them, oldest first, fewer where these have more than
    ``most_parts`` parts: (seconds, parts), each of these (sequence id, tag, kind, rows, drafted rows). With the GIL."""
    cdef int64_t n_steps = count_load(&self.n_steps), i, k, first, n_taken = 0
    cdef part_seen_t part
    cdef list steps = [], parts
    cdef double seconds
    # of the oldest step in the ring it is not known where it begins
    for i in range(n_steps - 1, max(n_steps - min(most, N_STEPS_SEEN // 2), 0) - 1, -1):
        first = self.steps[(i - 1) % N_STEPS_SEEN].end_part if i else 0
        n_taken += self.steps[i % N_STEPS_SEEN].end_part - first
        if n_taken > min(most_parts, N_PARTS_SEEN // 2):
            break
        seconds = self.steps[i % N_STEPS_SEEN].seconds
        parts = []
        for k in range(first, self.steps[i % N_STEPS_SEEN].end_part):
            part = self.parts[k % N_PARTS_SEEN]
            parts.append((part.seq_id, part.tag, part.kind, part.n_rows, part.n_drafted))
        # the part and the step behind those that are counted may be half written
        if count_load(&self.n_parts) - first >= N_PARTS_SEEN or count_load(&self.n_steps) - i >= N_STEPS_SEEN - 1:
            break
        steps.append((seconds, parts))
    steps.reverse()
    return n_steps, steps


cdef list glance_sequences(const live_t *live):
    """Those who run, by admission: (tag, sequence id, phase, tokens of its prompt, tokens it has, those in memory,
    those it may have, those it took from a running sequence and which that was (0: none), those restored, drafted
    tokens that were decoded and that came, seconds since it was submitted). With the GIL, with which they come and go.
    """
    cdef const sequence_t *s
    cdef const sequence_t *leader
    cdef list told = []
    cdef int32_t i
    cdef int64_t lender
    cdef int32_t n_lent
    cdef double time = now()
    for i in range(live.n):
        s = live.states[i]
        lender, n_lent = s.share.lender, s.share.n_lent
        leader = live.by_seq_id[s.share.leader] if s.share.leader >= 0 else NULL
        if leader != NULL:
            lender = leader.tag
        told.append((
            s.tag, s.seq_id, s.phase, s.tokens.n_prompt, s.tokens.n_certain, s.tokens.n_past, s.tokens.n_max, n_lent,
            lender, s.share.n_cached - n_lent, s.draft.n_decoded, s.draft.n_accepted, time - s.clock.submitted))
    return told
