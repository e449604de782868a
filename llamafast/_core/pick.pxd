from libc.stdint cimport int32_t, uint32_t, uint64_t

from .dry cimport dry_t
from .penalties cimport penalties_t

# Working memory of sampler_pick: one for all samplers that are used by the same thread.
cdef struct scratch_t:
    int32_t n_vocab
    float *block_max        # (blocks,)
    float *block_sum        # (blocks,) or bounds of them
    float *block_draw       # (blocks,) the same at the temperature
    float *logit            # (n_vocab,) candidates
    int32_t *id             # (n_vocab,) their token ids
    float *weight           # (n_vocab,) their exponentials
    float *narrowed         # (n_vocab,) what a search for a threshold has left
    float *raw              # (n_vocab,) logits as the model gave them, for who has to report them

cdef int scratch_init(scratch_t *self, int32_t n_vocab) noexcept nogil  # 0, or -1 when out of memory
cdef void scratch_free(scratch_t *self) noexcept nogil

cdef enum:
    MAX_STAGES = 16

cdef enum stage_t:
    STAGE_PENALTIES
    STAGE_DRY
    STAGE_TOP_N_SIGMA
    STAGE_TOP_K
    STAGE_TYPICAL_P
    STAGE_TOP_P
    STAGE_MIN_P
    STAGE_XTC
    STAGE_TEMPERATURE
    STAGE_MIROSTAT

cdef struct bias_t:
    int32_t token
    float bias

cdef struct sampler_t:
    int32_t n_vocab
    int32_t top_k           # 0: off
    int32_t n_bias
    float scale             # 1 / temperature
    float top_p             # 1: off
    float min_p             # 0: off
    bint greedy             # the best token, where there are no stages
    int32_t n_stages        # 0: penalties, top_k, top_p, min_p and temperature, in this order and without candidates
    stage_t stages[MAX_STAGES]
    float top_n_sigma
    float typical_p
    float xtc_probability
    float xtc_threshold
    float temperature
    float dynatemp_range    # 0: off
    float dynatemp_exponent
    int32_t mirostat        # its version
    float mirostat_tau
    float mirostat_eta
    float mirostat_mu
    uint64_t seed
    bias_t *bias            # (n_bias,)
    penalties_t penalties
    dry_t dry

cdef struct logprob_t:
    int32_t token           # -1: there are no more tokens than those before
    float logprob

# Log probabilities in row (n_vocab,): in out[0] the token's, then the n_top largest ones in descending order.
cdef void row_logprobs(
    scratch_t *scratch, const float *row, int32_t token, int32_t n_top, logprob_t *out
) noexcept nogil

# The token that follows history[:n_history], or -1 when out of memory or when the scratch is for a smaller vocabulary.
# row is (n_vocab,) and is edited in place. Between two calls the history may grow, and shrink and change within its
# last RECENT tokens.
cdef int32_t sampler_pick(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil

# Rule out the tokens whose bit of `allowed` is 0, in row (n_vocab,).
cdef void sampler_mask(float *row, int32_t n_vocab, const uint32_t *allowed) noexcept nogil
