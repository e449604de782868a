"""llama.cpp's log and the errors made from it.

llama.cpp reports why something failed only in its log, from any thread, with no GIL. The last warnings and errors are
kept here in C; ``check_ptr`` puts them into the exception.
"""
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock
from libc.stdio cimport fputs, stderr
from libc.string cimport memcpy, memmove, strlen

from .headers.llama cimport (
    GGML_LOG_LEVEL_CONT, GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_WARN, ggml_log_callback, ggml_log_level,
    llama_backend_init, llama_log_set,
)

from llamafast.errors import ModelLoadError

cdef enum:
    LOG_CAPACITY = 8192

# The newest LOG_CAPACITY bytes of warnings and errors, guarded by log_lock.
cdef char log_text[LOG_CAPACITY]
cdef int log_length = 0
cdef int last_level = 0
cdef int echo_level = GGML_LOG_LEVEL_ERROR + 1
cdef PyThread_type_lock log_lock = PyThread_allocate_lock()


cdef void log_store(ggml_log_level level, const char *text, void *user_data) noexcept nogil:
    """ggml_log_callback: keep warnings and errors, echo what ``set_echo`` asked for."""
    global log_length, last_level
    cdef int n = <int> strlen(text)
    cdef int drop
    PyThread_acquire_lock(log_lock, 1)
    if level != GGML_LOG_LEVEL_CONT:
        last_level = level
    if last_level >= echo_level:
        fputs(text, stderr)
    if last_level >= GGML_LOG_LEVEL_WARN:
        if n > LOG_CAPACITY:
            text += n - LOG_CAPACITY
            n = LOG_CAPACITY
        if log_length + n > LOG_CAPACITY:
            drop = log_length + n - LOG_CAPACITY
            memmove(log_text, log_text + drop, log_length - drop)
            log_length -= drop
        memcpy(log_text + log_length, text, n)
        log_length += n
    PyThread_release_lock(log_lock)


def drain_log():
    """The warnings and errors that llama.cpp logged since the last call, oldest first, as one string."""
    global log_length
    cdef bytes text
    PyThread_acquire_lock(log_lock, 1)
    try:
        text = log_text[:log_length]
        log_length = 0
    finally:
        PyThread_release_lock(log_lock)
    return text.decode("utf-8", "replace").strip()


def set_echo(bint verbose):
    """Echo all of llama.cpp's log to stderr, or (the default) nothing of it."""
    global echo_level
    echo_level = 0 if verbose else GGML_LOG_LEVEL_ERROR + 1


cdef void forget_log() noexcept:
    """Call before an operation whose failure ``check_ptr`` explains."""
    global log_length
    PyThread_acquire_lock(log_lock, 1)
    log_length = 0
    PyThread_release_lock(log_lock)


cdef int check_ptr(const void *pointer, str what) except -1:
    """Raise ModelLoadError with llama.cpp's own words when a constructor returned NULL."""
    if pointer == NULL:
        raise ModelLoadError(f"{what}: {drain_log() or 'llama.cpp gave no reason'}")
    return 0


cdef ggml_log_callback log_callback() noexcept:
    """What keeps the log, for libraries that have one of their own."""
    return log_store


llama_log_set(log_store, NULL)
llama_backend_init()
