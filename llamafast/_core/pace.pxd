# How time is divided, as far as the core does it: seconds, rows, or shares of a step's time. Whoever makes a Runner or
# an Embedder gives a mapping with these names; engine/pace.py says what each is for.
from libc.stdint cimport int32_t, int64_t

cdef struct pace_t:
    double gap_stretch
    double gap_seconds
    double media_stretch
    double target_itl
    int32_t prefill_chunk
    double least_spare
    int32_t min_prefill
    int32_t first_prefill
    int64_t scored_bytes
    double prefill_seconds
    double cost_decay
    double excess_weight
    double excess_most
    double draft_stretch
    double mask_patience
    double mask_seconds
    double slow_mask_seconds
    double forcing_seconds
    double mask_limit_seconds
    int32_t min_embed
    int32_t first_embed
