# Where a prompt invokes an adapter: from there on its rows have another group, and are another salt's.
from libc.stdint cimport int32_t, uint64_t

cdef struct invocation_t:
    int32_t at              # the first token that has it; 0: nothing is invoked
    int32_t group
    const char *salt        # (n_salt,) bytes
    Py_ssize_t n_salt
    uint64_t seed           # the salt's digest

cdef class Invocation:
    cdef invocation_t state
    cdef readonly bytes salt

# Up to which token both may share, where they may share what is before: UNLIMITED where they invoke the same.
cdef int32_t invocations_part(const invocation_t *one, const invocation_t *other) noexcept nogil
