# Who drafts, and how much of it a step decodes.
from libc.stdint cimport int32_t, int64_t

from .acceptance cimport acceptance_t
from .answers cimport answers_t
from .context cimport Context
from .cost cimport times_t
from .draft cimport MAX_DRAFT, proposal_t
from .draft_model cimport DraftModel
from .live cimport live_t
from .nextn cimport Head
from .sequence cimport sequence_t

cpdef enum:
    SOURCE_OWN              # prompt and answer of the sequence itself
    SOURCE_PREDICTION       # what its client expects
    SOURCE_ANSWERS          # what others were answered
    SOURCE_HEAD             # a head of the model's
    SOURCE_MODEL            # a small model
    N_SOURCES

# Takes the place of all sources: for tests.
ctypedef void (*propose_t)(void *self, const sequence_t *s, int32_t most, proposal_t *proposal) noexcept nogil

cdef struct draft_counters_t:
    int64_t proposals
    int64_t proposed            # tokens of them
    int64_t verified            # sequences' drafts that were decoded
    int64_t drafted             # tokens of these
    int64_t accepted
    int64_t refused             # drafts that a ledger did not allow
    int64_t dropped             # steps that had no room for theirs
    int64_t drafted_by[N_SOURCES]
    int64_t accepted_by[N_SOURCES]
    int64_t lengths[MAX_DRAFT + 1]      # drafts by the tokens of them that came
    int64_t calls               # steps for which somebody proposed
    int64_t observed            # sequences that got tokens
    double propose_seconds
    double observe_seconds

cdef class Drafter:
    cdef Context context
    cdef int32_t most           # tokens of a draft
    cdef int32_t most_rows      # of recurrent state that can be taken back
    cdef int32_t most_sequences     # where more decode nobody drafts
    cdef bint looks_up          # for everybody, not only for those with a prediction
    cdef bint recurrent
    cdef bint in_passes         # rows of sequences that have not equally many are computed one after the other
    cdef readonly Head head     # None: there is none
    cdef readonly DraftModel model  # the same
    cdef propose_t propose
    cdef void *proposer
    cdef acceptance_t acceptance
    cdef times_t times
    cdef answers_t answers
    cdef int32_t to_index       # tokens that this step may still index
    cdef double row_cost        # of a draft row in this step, in rows
    cdef double row_seconds     # of a row in a step like this without drafts
    cdef double seconds         # that models took which draft for this step
    cdef double stretch         # pace_t's, of who steps
    cdef double mask_seconds    # the same: for the masks of one draft
    cdef draft_counters_t counters

cdef int32_t drafter_fill(
    Drafter self, live_t *live, int32_t turn, int32_t n_decode, int32_t n_prompt, int32_t room
) noexcept nogil
cdef void drafter_drop(live_t *live) noexcept nogil
cdef void drafter_observe(Drafter self, sequence_t *s, int32_t n_before) noexcept nogil
