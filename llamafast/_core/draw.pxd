# How a token is drawn: the sampler's parameters, the memory a draw works in, and the draw itself.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from .dry cimport dry_t
from .headers.infill cimport llama_sampler
from .penalties cimport penalties_t

# Working memory of a draw: one for all samplers that are used by the same thread.
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
    STAGE_INFILL

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
    llama_sampler *infill   # its stage, NULL: none
    penalties_t penalties
    dry_t dry

# Different random numbers of the same position.
cdef enum:
    DRAW_TOKEN
    DRAW_PROPOSE
    DRAW_XTC

# A token at `position`, drawn from row (n_vocab,) by a sampler without stages whose penalties are done.
cdef int32_t draw_token(sampler_t *self, scratch_t *scratch, const float *row, uint32_t position) noexcept nogil

# Rule out the tokens whose bit of `allowed` is 0, in row (n_vocab,).
cdef void draw_mask(float *row, int32_t n_vocab, const uint32_t *allowed) noexcept nogil

# What stages are made of: thresholds over the n candidates in scratch.logit and scratch.id, and the draw among logits.
cdef float least_of_top(scratch_t *scratch, int32_t n_vocab, int32_t n_top, float largest) noexcept nogil
cdef int32_t draw_best(sampler_t *self, scratch_t *scratch, const float *row) noexcept nogil
cdef int32_t draw_at(
    scratch_t *scratch, const float *x, int32_t n, float scale, uint64_t seed, uint32_t position
) noexcept nogil
cdef int32_t cut_top_k(scratch_t *scratch, int32_t n, int32_t top_k, float low, float high) noexcept nogil
cdef int32_t keep_top_p(sampler_t *self, scratch_t *scratch, int32_t n, double total) noexcept nogil
cdef float lowest_by_min_p(sampler_t *self, float largest) noexcept nogil
