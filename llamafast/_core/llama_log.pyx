"""llama.cpp's log and the errors made from it.

llama.cpp reports why something failed only in its log, from any thread, with no GIL. The last warnings and errors are
kept here in C; ``check_ptr`` puts them into the exception. What it allocates it tells only there as well: those lines
are kept apart.
"""
from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock
from libc.stdio cimport fputs, stderr
from libc.string cimport memcpy, memmove, strlen, strstr

from .headers.llama cimport (
    GGML_LOG_LEVEL_CONT, GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_INFO, GGML_LOG_LEVEL_WARN, ggml_log_callback,
    ggml_log_level,
    llama_backend_init, llama_log_set,
)

from llamafast.errors import ModelLoadError

cdef enum:
    LOG_CAPACITY = 8192

# The newest LOG_CAPACITY bytes of lines of a kind, guarded by log_lock.
cdef struct kept_t:
    char text[LOG_CAPACITY]
    int length

cdef kept_t faults, sizes
cdef int last_level = 0
cdef int echo_level = GGML_LOG_LEVEL_ERROR + 1
cdef PyThread_type_lock log_lock = PyThread_allocate_lock()


cdef void log_store(ggml_log_level level, const char *text, void *user_data) noexcept nogil:
    """ggml_log_callback: keep warnings, errors and what is allocated, echo what ``set_echo`` asked for."""
    global last_level
    PyThread_acquire_lock(log_lock, 1)
    if level != GGML_LOG_LEVEL_CONT:
        last_level = level
    if last_level >= echo_level:
        fputs(text, stderr)
    if last_level >= GGML_LOG_LEVEL_WARN:
        keep(&faults, text)
    elif level == GGML_LOG_LEVEL_INFO and (strstr(text, "size = ") != NULL or strstr(text, "using device ") != NULL):
        keep(&sizes, text)
    PyThread_release_lock(log_lock)


cdef void keep(kept_t *kept, const char *text) noexcept nogil:
    cdef int n = <int> strlen(text)
    cdef int drop
    if n > LOG_CAPACITY:
        text += n - LOG_CAPACITY
        n = LOG_CAPACITY
    if kept.length + n > LOG_CAPACITY:
        drop = kept.length + n - LOG_CAPACITY
        memmove(kept.text, kept.text + drop, kept.length - drop)
        kept.length -= drop
    memcpy(kept.text + kept.length, text, n)
    kept.length += n


cdef str drain(kept_t *kept):
    cdef bytes text
    PyThread_acquire_lock(log_lock, 1)
    try:
        text = kept.text[:kept.length]
        kept.length = 0
    finally:
        PyThread_release_lock(log_lock)
    return text.decode("utf-8", "replace").strip()


def drain_log():
    """The warnings and errors that llama.cpp logged since the last call, oldest first, as one string."""
    return drain(&faults)


def drain_sizes():
    """The same of lines on what it has allocated, and on the devices it found."""
    return drain(&sizes)


def set_echo(bint verbose):
    """Echo all of llama.cpp's log to stderr, or (the default) nothing of it."""
    global echo_level
    echo_level = 0 if verbose else GGML_LOG_LEVEL_ERROR + 1


cdef void forget_log() noexcept:
    """Call before an operation whose failure ``check_ptr`` explains."""
    PyThread_acquire_lock(log_lock, 1)
    faults.length = 0
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
