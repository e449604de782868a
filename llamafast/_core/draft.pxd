# What is drafted for a sequence: tokens that may come next.
from libc.stdint cimport int32_t, int64_t

from .chains cimport chains_t

cdef enum:
    MAX_DRAFT = 64

# Tokens that may come next, as one source has them.
cdef struct proposal_t:
    int32_t n
    int32_t n_matched           # so many tokens had been the same where they came before; 0: nobody looked for that
    float first                 # how much less likely the first one is than after such a match at large, at most 1
    int32_t tokens[MAX_DRAFT]

# Text that the answer is expected to repeat: what the client has sent as its prediction.
cdef struct prediction_t:
    const int32_t *tokens       # (n,)
    int32_t n
    chains_t chains
    int32_t hint
    int32_t at                  # which of them is expected next, -1: none
    int32_t n_accepted          # those that came as expected

cdef struct draft_t:
    int32_t source
    proposal_t proposal         # for the next step, whether it is decoded or not
    float survival[MAX_DRAFT]   # chance that a token, and all before it, are what comes
    chains_t own                # prompt and answer
    int32_t hint                # where these were followed, from their end
    prediction_t prediction
    int32_t in_a_row            # tokens that came as they were proposed, since one did not
    double hits                 # tokens of the last proposals that came
    double expected             # those that were expected to
    # In rows: what a step takes divided by the rows that it needs without drafts.
    double balance              # what drafts have saved less what they have cost, and a little credit
    double rows                 # what it has taken
    int64_t n_decoded           # drafted tokens that were
    int64_t n_accepted          # and of those that came
