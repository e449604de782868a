"""Counts what is alive in debug builds, so that a test can tell a leak."""

cdef int alive[N_KINDS]


cdef extern from *:
    """
    static inline void count_add(int *counter, int n) { __atomic_add_fetch(counter, n, __ATOMIC_RELAXED); }
    """
    void count_add(int *counter, int n) noexcept nogil


cdef void count(int kind, int n) noexcept nogil:
    count_add(&alive[kind], n)


def counting():
    """Whether this build counts."""
    return bool(LLAMAFAST_DEBUG)


def living():
    """How many of each kind are alive, by kind; all 0 in a release build."""
    cdef object kinds = Kind
    return {name.lower(): alive[<int> kind] for name, kind in kinds.__members__.items() if kind != N_KINDS}
