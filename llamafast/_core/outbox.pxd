# The records in which a step tells what has come of it.
from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int32_t, int64_t

from .logprobs cimport logprob_t

cdef struct buffer_t:
    char *bytes
    size_t used
    size_t capacity

# What is told of a sequence; its text, its entries and its ids follow it.
cdef struct record_t:
    int64_t tag
    int32_t length      # bytes of text
    int32_t n_tokens
    int32_t n_cached
    int32_t n_prompt    # tokens of its prompt that have been in memory
    int32_t finish
    int32_t matched_stop    # as out_t has it
    int32_t n_entries   # log probabilities
    int32_t n_ids       # of its new tokens
    bint of_prompt      # they are those of its prompt

cdef class Outbox:
    cdef buffer_t staged        # the engine thread's own
    cdef buffer_t published     # guarded by lock
    cdef buffer_t draining      # the reader's own
    cdef PyThread_type_lock lock
    cdef int wake_fd

cdef int outbox_stage(
    Outbox self, const record_t *record, const char *text, const logprob_t *entries, const int32_t *ids
) noexcept nogil
cdef int outbox_publish(Outbox self) noexcept nogil
