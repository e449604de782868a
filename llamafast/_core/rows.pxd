# Which rows a step gets, and how much time that leaves others.
from libc.stdint cimport int32_t

from .cost cimport step_cost_t
from .drafter cimport Drafter
from .headers.llama cimport llama_batch
from .live cimport live_t
from .pace cimport pace_t
from .sequence cimport sequence_t

# What decides how many rows a step gets.
cdef struct quota_t:
    pace_t pace
    int32_t n_batch
    int32_t n_ubatch
    int32_t n_mixed             # rows of a step of several groups of adapters, 0: there is none
    int32_t turn                # the group that had the last step, where they take turns
    int32_t turn_before         # and the one before that
    int32_t n_elsewhere         # rows that continue what groups without the turn generate
    int32_t n_scored_max        # rows of a step that score prompts
    step_cost_t cost

cdef void quota_init(
    quota_t *self, int32_t n_batch, int32_t n_ubatch, int32_t n_mixed, int32_t n_vocab, pace_t pace
) noexcept nogil
cdef int32_t rows_fill(
    quota_t *self, live_t *live, llama_batch *batch, double prompts, double waited, Drafter drafter
) noexcept nogil
cdef double quota_spare(
    const quota_t *self, double seconds, int32_t n_rows, int32_t n_decode, double *media
) noexcept nogil
cdef int32_t prefill_budget(
    const quota_t *self, int32_t n_decode, double share, double waited, double gone, bint of_media
) noexcept nogil
cdef void rows_none(sequence_t *s) noexcept nogil
cdef void rows_of_media(live_t *live, sequence_t *s, int32_t n) noexcept nogil

cdef inline void rows_gave(sequence_t *s) noexcept nogil:
    """One of them has given a token, or several."""
    s.rows.n_gave += 1

cdef inline bint rows_give_token(const sequence_t *s) noexcept nogil:
    """Whether one of its rows in the step that was computed gives the next token's logits."""
    return s.rows.n_outputs > 0 and s.tokens.n_past == s.tokens.n_certain
