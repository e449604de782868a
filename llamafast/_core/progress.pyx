"""When this process last came further with what may take long: a graph that CPUs compute, weights that are read."""
from libc.stdint cimport int64_t

from .headers.clock cimport now

cdef enum:
    # Nodes between two looks at the clock, which takes longer than the smallest of them.
    NODES_PER_LOOK = 4

cdef int64_t n_nodes = 0
cdef double last = now()


cdef c_bool node_computed(void *data) noexcept nogil:
    """ggml's abort callback, which one of the threads of a graph calls after each node on CPUs; it aborts nothing."""
    global n_nodes, last
    n_nodes += 1
    if n_nodes % NODES_PER_LOOK == 0:
        last = now()
    return False


cdef c_bool weights_read(float fraction, void *data) noexcept nogil:
    """llama_progress_callback; it stops nothing."""
    global last
    last = now()
    return True


def last_progress():
    """Monotonic seconds. Any thread; never waits for a step."""
    return last
