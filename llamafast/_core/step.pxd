# One step: what it works with, what it comes to and what it counts.
from libc.stdint cimport int64_t

from .context cimport Batch, Context
from .drafter cimport Drafter
from .glance cimport glance_t
from .histograms cimport histograms_t
from .live cimport live_t
from .masks cimport Masker
from .media cimport MediaBatch
from .outbox cimport Outbox
from .output cimport Output
from .rows cimport quota_t

# What a step came to, the Embedder's too; failures of llama_decode are its own negative codes and 2.
cpdef enum:
    PAUSED = 0          # the next step may follow
    NO_ROOM = 1         # llama_decode's own 1: nothing changed
    FINISHED = 3        # a sequence just has
    NO_MEMORY = 4
    SAVE_DUE = 5        # somebody has reached its save_at
    IDLE = 6            # nobody has a row to compute
    NO_OUTPUT = 7       # llama.cpp has no logits, or no vector, of a row that it has computed
    NOT_TAKEN_BACK = 8  # nor does it forget rows that it should

cdef struct counters_t:
    int64_t steps
    int64_t rows
    int64_t rows_max
    int64_t prompt_tokens       # rows of media count too
    int64_t media_rows
    int64_t generated_tokens
    int64_t sequences           # summed over steps
    double prompt_seconds       # a step's time divided by its rows
    double generated_seconds
    double step_seconds
    double decode_seconds
    double sample_seconds
    double last_step            # monotonic time of the last finished step

cdef class Step:
    cdef Context context
    cdef Batch batch
    cdef Outbox outbox
    cdef Masker masker
    cdef Output output
    cdef Drafter drafter                        # None: nobody drafts
    cdef live_t live
    cdef quota_t quota
    cdef MediaBatch media
    cdef bint media_turn                        # tokens had the last step
    cdef bint decodes                           # and somebody was decoding
    cdef double prompts                         # of the time for prompts, the share that this step has
    cdef double told                            # when those who decode got their last tokens; 0: nobody runs yet
    cdef double waited                          # how long before this step that was, in seconds
    cdef double spare                           # seconds that others may compute before the next step
    cdef double media_spare                     # and how many of them rows of media
    cdef counters_t counters
    cdef histograms_t observed
    cdef glance_t glance

cdef int step_take(Step self) noexcept nogil
