# Numbers that one thread sets and others look at without a lock: who sees one sees what was written before it was set.
from libc.stdint cimport int64_t

cdef extern from *:
    """
    static inline int shared_load(int *value) { return __atomic_load_n(value, __ATOMIC_ACQUIRE); }
    static inline void shared_store(int *value, int next) { __atomic_store_n(value, next, __ATOMIC_RELEASE); }
    static inline int64_t count_load(int64_t *value) { return __atomic_load_n(value, __ATOMIC_ACQUIRE); }
    static inline void count_store(int64_t *value, int64_t next) { __atomic_store_n(value, next, __ATOMIC_RELEASE); }
    """
    int shared_load(int *value) noexcept nogil
    void shared_store(int *value, int next) noexcept nogil
    int64_t count_load(int64_t *value) noexcept nogil
    void count_store(int64_t *value, int64_t next) noexcept nogil
