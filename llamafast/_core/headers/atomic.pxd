# An int that one thread sets and others look at without a lock: who sees it sees what was written before it was set.
cdef extern from *:
    """
    static inline int shared_load(int *value) { return __atomic_load_n(value, __ATOMIC_ACQUIRE); }
    static inline void shared_store(int *value, int next) { __atomic_store_n(value, next, __ATOMIC_RELEASE); }
    """
    int shared_load(int *value) noexcept nogil
    void shared_store(int *value, int next) noexcept nogil
