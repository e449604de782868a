# What is told of the last steps, and of who runs, to whoever looks on.
from libc.stdint cimport int32_t, int64_t

from .live cimport live_t
from .sequence cimport sequence_t

cdef enum:
    N_STEPS_SEEN = 256
    N_PARTS_SEEN = 4096

# What a sequence's rows in a step were of.
cpdef enum:
    PART_DECODE
    PART_PROMPT
    PART_MEDIA

# A sequence's rows in a step; the last n_drafted of them are of drafted tokens.
cdef struct part_seen_t:
    int64_t tag
    int32_t seq_id
    int32_t kind
    int32_t n_rows
    int32_t n_drafted

# Its parts are those before end_part, from the end of the step before on.
cdef struct step_seen_t:
    int64_t end_part
    float seconds

# Two rings: of all since the start, step and part i lie at i modulo their lengths. The engine thread writes, and counts
# what it has written; whoever reads looks afterwards how far it has come, as what it read may have been written over.
cdef struct glance_t:
    int64_t n_steps
    int64_t n_parts
    step_seen_t steps[N_STEPS_SEEN]
    part_seen_t parts[N_PARTS_SEEN]

cdef void glance_part(glance_t *self, const sequence_t *s, bint media) noexcept nogil
cdef void glance_step(glance_t *self, double seconds) noexcept nogil
cdef tuple glance_steps(glance_t *self, int32_t most, int32_t most_parts)
cdef list glance_sequences(const live_t *live)
