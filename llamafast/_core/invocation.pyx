"""Adapters that are activated in the middle of a prompt (Greenewald et al.: Activated LoRA, arXiv 2504.12397)."""
from libc.stdint cimport INT32_MAX, int32_t, uint64_t
from libc.string cimport memcmp

from .adapters cimport MAX_GROUPS
from .context cimport UNLIMITED


cdef class Invocation:
    """From token ``at`` of a prompt on its rows have the adapters of ``group``, and those before have the sequence's
    own. What is computed from there on is shared among those of one ``salt`` and ``at`` alone; ``seed`` is the salt's
    digest. Raises ValueError for a place before the second token and for what is no group."""

    def __cinit__(self, *, int32_t at, int32_t group, bytes salt not None, uint64_t seed=0):
        if not 0 < at < INT32_MAX or not 0 < group < MAX_GROUPS:
            raise ValueError(f"group {group} from token {at} on")
        self.salt = salt
        self.state.at = at
        self.state.group = group
        self.state.salt = salt
        self.state.n_salt = len(salt)
        self.state.seed = seed

    @property
    def at(self):
        return self.state.at

    @property
    def group(self):
        return self.state.group


cdef int32_t invocations_part(const invocation_t *one, const invocation_t *other) noexcept nogil:
    if one.at == other.at and one.n_salt == other.n_salt and (
        one.n_salt == 0 or memcmp(one.salt, other.salt, <size_t> one.n_salt) == 0
    ):
        return UNLIMITED
    if one.at == 0:
        return other.at
    return one.at if other.at == 0 else min(one.at, other.at)
