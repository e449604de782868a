"""How a step's results leave the engine thread without the GIL.

The engine thread stages one record per sequence that has something to say and publishes all of them at the end of the
step. Publishing into an empty box writes one byte to a pipe, which wakes the event loop once for all streams; what
later steps publish before the loop has come round is taken by the same wake-up.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
)
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from .leaks cimport OUTBOX, born, died
from .logprobs cimport logprob_t


cdef extern from "unistd.h" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef int buffer_append(buffer_t *self, const void *data, size_t size) noexcept nogil:
    """0, or -1 when out of memory (the buffer is unchanged then)."""
    cdef size_t capacity
    cdef char *grown
    if self.used + size > self.capacity:
        capacity = 2 * (self.used + size) + 1024
        grown = <char *> realloc(self.bytes, capacity)
        if grown == NULL:
            return -1
        self.bytes = grown
        self.capacity = capacity
    if size:
        memcpy(self.bytes + self.used, data, size)
    self.used += size
    return 0


cdef int outbox_stage(
    Outbox self, const record_t *record, const char *text, const logprob_t *entries, const int32_t *ids
) noexcept nogil:
    """Add a record to the current step: 0, or -1 when out of memory."""
    cdef size_t before = self.staged.used
    if (buffer_append(&self.staged, record, sizeof(record_t)) < 0
            or buffer_append(&self.staged, text, <size_t> record.length) < 0
            or buffer_append(&self.staged, entries, <size_t> record.n_entries * sizeof(logprob_t)) < 0
            or buffer_append(&self.staged, ids, <size_t> record.n_ids * sizeof(int32_t)) < 0):
        self.staged.used = before
        return -1
    return 0


cdef int outbox_publish(Outbox self) noexcept nogil:
    """Hand the staged records over and wake the reader if it has none yet: 0, or -1 when out of memory."""
    cdef bint was_empty
    cdef int code = 0
    cdef char wake = 0
    if self.staged.used == 0:
        return 0
    PyThread_acquire_lock(self.lock, 1)
    was_empty = self.published.used == 0
    if was_empty:
        self.published, self.staged = self.staged, self.published
    else:
        code = buffer_append(&self.published, self.staged.bytes, self.staged.used)
    PyThread_release_lock(self.lock)
    if code == 0:
        self.staged.used = 0
    if was_empty:
        # the pipe does not block; when it is full, a wake-up is already on its way
        write(self.wake_fd, &wake, 1)
    return code


cdef class Outbox:
    """One writer (the engine thread), one reader. ``wake_fd`` is the non-blocking write end of a pipe."""

    def __cinit__(self, int wake_fd):
        self.wake_fd = wake_fd
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        born(OUTBOX)

    def __dealloc__(self):
        if self.lock != NULL:
            died(OUTBOX)
            PyThread_free_lock(self.lock)
        free(self.staged.bytes)
        free(self.published.bytes)
        free(self.draining.bytes)

    def drain(self):
        """Every published record, oldest first: (tag, text, n_tokens, n_cached, finish, logprobs, matched_stop, ids,
        n_prompt), finish 0 while running; ``logprobs`` is None or whether they are the prompt's, and pairs of int32 and
        float32, as logprobs_t has them; ``matched_stop`` counts the stop strings, then the stop tokens, -1 where none
        of them ended it; ``ids`` are the int32 of the ``n_tokens`` where they are to be told; ``n_prompt`` tokens of
        its prompt have been in memory."""
        cdef record_t record
        cdef size_t size, ids_size
        cdef size_t at = 0
        cdef list rows = []
        PyThread_acquire_lock(self.lock, 1)
        self.draining, self.published = self.published, self.draining
        PyThread_release_lock(self.lock)
        try:
            while at < self.draining.used:
                memcpy(&record, self.draining.bytes + at, sizeof(record))
                at += sizeof(record)
                size = <size_t> record.n_entries * sizeof(logprob_t)
                ids_size = <size_t> record.n_ids * sizeof(int32_t)
                logprobs = None
                if size:
                    logprobs = bool(record.of_prompt), PyBytes_FromStringAndSize(
                        self.draining.bytes + at + record.length, <Py_ssize_t> size)
                rows.append((
                    record.tag, PyUnicode_DecodeUTF8(self.draining.bytes + at, record.length, "replace"),
                    record.n_tokens, record.n_cached, record.finish, logprobs, record.matched_stop,
                    PyBytes_FromStringAndSize(
                        self.draining.bytes + at + record.length + size, <Py_ssize_t> ids_size) if ids_size else b"",
                    record.n_prompt,
                ))
                at += <size_t> record.length + size + ids_size
        finally:
            # what is left here would be taken for published records
            self.draining.used = 0
        return rows
