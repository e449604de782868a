# What is counted where debug builds look for leaks.
cdef extern from *:
    """
    #ifndef LLAMAFAST_DEBUG
    #define LLAMAFAST_DEBUG 0
    #endif
    """
    const bint LLAMAFAST_DEBUG

# What owns C memory. In debug and sanitizer builds each constructor counts +1 and each destructor -1 (born, died); in
# release builds both fold away.
cpdef enum Kind:
    MODEL
    VOCAB
    CONTEXT
    BATCH
    OUTBOX
    SAMPLER
    CONSTRAINT
    SEQUENCE
    RUNNER
    INPUT
    EMBEDDER
    BREAKERS
    ADAPTER
    DRAFTER
    HEAD
    DRAFT_MODEL
    N_KINDS

cdef void count(int kind, int n) noexcept nogil

cdef inline void born(Kind kind) noexcept nogil:
    if LLAMAFAST_DEBUG:
        count(kind, 1)

cdef inline void died(Kind kind) noexcept nogil:
    if LLAMAFAST_DEBUG:
        count(kind, -1)
