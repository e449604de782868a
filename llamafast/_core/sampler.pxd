from libc.stdint cimport int32_t, uint32_t, uint64_t

# Working memory of sampler_pick: one for all samplers that are used by the same thread.
cdef struct scratch_t:
    int32_t n_vocab
    float *block_max        # (blocks,)
    float *block_sum        # (blocks,)
    float *logit            # (n_vocab,) candidates
    int32_t *id             # (n_vocab,) their token ids
    float *weight           # (n_vocab,) their exponentials
    float *narrowed         # (n_vocab,) what a search for a threshold has left

cdef int scratch_init(scratch_t *self, int32_t n_vocab) noexcept nogil  # 0, or -1 when out of memory
cdef void scratch_free(scratch_t *self) noexcept nogil

cdef enum:
    RECENT = 64

cdef struct count_t:
    int32_t token           # -1: a free slot
    int32_t count

# How often each token occurs in history[begin:end]: an open-addressing hash table that follows the history.
cdef struct counts_t:
    count_t *slots          # (capacity,)
    int32_t n_vocab         # other ids are not counted
    int32_t capacity        # a power of two, or 0
    int32_t n_used          # slots that are not free; a count may have fallen to 0
    int32_t begin
    int32_t end
    int32_t recent[RECENT]  # recent[i % RECENT] is what was counted at i, the last RECENT positions before end

cdef struct bias_t:
    int32_t token
    float bias

cdef struct sampler_t:
    int32_t n_vocab
    int32_t top_k           # 0: off
    int32_t penalty_last_n  # 0: off
    int32_t n_bias
    float scale             # 1 / temperature
    float top_p             # 1: off
    float min_p             # 0: off
    float repetition_penalty
    float presence_penalty
    float frequency_penalty
    bint greedy
    uint64_t seed
    bias_t *bias            # (n_bias,)
    counts_t counts

cdef class Sampler:
    cdef sampler_t state
    cdef bint counted
    cdef scratch_t own_scratch  # of pick

# The token that follows history[:n_history], or -1 when out of memory or when the scratch is for a smaller vocabulary.
# row is (n_vocab,) and is edited in place. Between two calls the history may grow, and shrink and change within its
# last RECENT tokens.
cdef int32_t sampler_pick(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil

# Rule out the tokens whose bit of `allowed` is 0, in row (n_vocab,).
cdef void sampler_mask(float *row, int32_t n_vocab, const uint32_t *allowed) noexcept nogil
