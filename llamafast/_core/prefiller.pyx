"""Prompts computed beside a loop that decodes, in slices of time.

A prompt is cheapest in large batches, and a large batch holds everybody up for as long as it takes: llama_decode cannot
be left and entered again. So prompts have a context and a thread of their own. Between any two nodes of its graph
llama.cpp asks the context's abort callback whether to go on, and there the thread waits until it is given the turn
again. At any time only one of the two threads computes.
"""
from libc.stdint cimport int32_t

from .context cimport Batch, Context, batch_add, context_decode
from .headers.clock cimport now
from .headers.llama cimport (
    c_bool, llama_get_logits_ith, llama_memory_seq_rm, llama_set_abort_callback, llama_synchronize,
)
from .headers.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_wait, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from .leaks cimport PREFILLER, born, died


def suits(Context context not None):
    """Whether the prompts of a context can be computed in another one and moved in parts, any part of them."""
    return context.scratch >= 0 and context.n_cuttable >= context.n_ctx


cdef class Prefiller:
    """Owns a Context that ``suits``, and that nobody uses after it.

    Whoever made this lets a thread ``run``; all other methods belong to the engine thread, and while ``working`` it may
    only give slices (``Runner.run`` does) and ``close``. Raises ValueError for another context.
    """

    def __cinit__(self, Context context not None):
        if not suits(context):
            raise ValueError("sequences of this context cannot be moved in parts")
        self.context = context
        self.batch = Batch(context.n_batch)
        pthread_mutex_init(&self.turn.lock, NULL)
        pthread_cond_init(&self.turn.passed, NULL)
        self.ready = True
        born(PREFILLER)
        llama_set_abort_callback(context.ctx, pause, &self.turn)

    def __dealloc__(self):
        if self.ready:
            pthread_cond_destroy(&self.turn.passed)
            pthread_mutex_destroy(&self.turn.lock)
            died(PREFILLER)

    @property
    def n_ctx(self):
        return self.context.n_ctx

    @property
    def n_seq_max(self):
        return self.context.n_seq_max

    @property
    def n_batch(self):
        return self.context.n_batch

    @property
    def working(self):
        """Whether the last batch is still being computed."""
        return bool(self.turn.working)

    def add(self, int32_t seq_id, const int32_t[::1] tokens not None, int32_t start, int32_t stop, bint output=False):
        """Put ``tokens[start:stop]`` of a sequence into the next batch, with ``output`` for the logits of the last of
        them too; the row of the batch that this one is. Raises IndexError where it has no room."""
        cdef int32_t i, row = -1
        if not 0 <= start < stop <= tokens.shape[0] or not 0 <= seq_id < self.context.n_seq_max:
            raise ValueError(f"tokens {start} to {stop} of {tokens.shape[0]} in sequence {seq_id}")
        if self.batch.batch.n_tokens + stop - start > self.batch.capacity:
            raise IndexError(f"the batch has room for {self.batch.capacity} rows")
        for i in range(start, stop):
            row = batch_add(&self.batch.batch, tokens[i], i, seq_id, output and i == stop - 1)
        return row

    def begin(self):
        """Hand the batch to the thread, which computes it in the slices it is given."""
        if self.turn.working or not self.batch.batch.n_tokens:
            raise ValueError("there is a batch already" if self.turn.working else "the batch is empty")
        self.seconds = 0
        self.turn.working = True

    def settle(self):
        """After a batch: empty it for the next one."""
        self.batch.clear()

    def restore(self, int32_t seq_id, bytes saved not None, int32_t start, int32_t stop):
        """Give a sequence that ends at ``start`` its tokens up to ``stop`` of a saved part; False where llama.cpp does
        not take it."""
        return self.context.restore_part(seq_id, saved, start, stop)

    def save(self, int32_t seq_id, int32_t start, int32_t stop):
        """The state of a sequence's tokens [start, stop)."""
        return self.context.save_part(seq_id, start, stop)

    def cut(self, int32_t seq_id, int32_t n_tokens):
        """Forget what a sequence has beyond ``n_tokens``."""
        llama_memory_seq_rm(self.context.memory, seq_id, n_tokens, -1)

    def run(self):
        """Compute batches until ``close``."""
        with nogil:
            while turn_take(&self.turn):
                self.code = context_decode(self.context, &self.batch.batch)
                llama_synchronize(self.context.ctx)
                turn_end(&self.turn)

    def abort(self):
        """Give up the batch that is being computed, of which nobody wants anything; returns once that is done."""
        with nogil:
            pthread_mutex_lock(&self.turn.lock)
            if self.turn.working and not self.turn.closing:
                self.turn.aborting = self.turn.granted = True
                self.turn.until = 0
                pthread_cond_broadcast(&self.turn.passed)
                while self.turn.working and not self.turn.closing:
                    pthread_cond_wait(&self.turn.passed, &self.turn.lock)
            pthread_mutex_unlock(&self.turn.lock)

    def close(self):
        """``run`` returns; what it computes is aborted."""
        pthread_mutex_lock(&self.turn.lock)
        self.turn.closing = self.turn.granted = True
        self.turn.until = 0
        pthread_cond_broadcast(&self.turn.passed)
        pthread_mutex_unlock(&self.turn.lock)


cdef double prefiller_slice(Prefiller self, double seconds) noexcept nogil:
    """Let it compute for about ``seconds``, a node of its graph more or less, or to the end of its batch; how long that
    took. ``turn.working`` says whether there is more."""
    cdef turn_t *turn = &self.turn
    cdef double start = now(), spent
    pthread_mutex_lock(&turn.lock)
    turn.until = start + seconds
    turn.granted = True
    pthread_cond_broadcast(&turn.passed)
    while turn.granted and not turn.closing:
        pthread_cond_wait(&turn.passed, &turn.lock)
    pthread_mutex_unlock(&turn.lock)
    spent = now() - start
    self.seconds += spent
    return spent


cdef float *prefiller_logits(Prefiller self, int32_t row) noexcept nogil:
    """The logits of a row of the last batch that was computed, until the next one is; NULL where it has none."""
    return llama_get_logits_ith(self.context.ctx, row)


cdef bint turn_take(turn_t *self) noexcept nogil:
    """Wait for a batch and a slice: False to end."""
    pthread_mutex_lock(&self.lock)
    while not self.closing and not (self.granted and self.working):
        pthread_cond_wait(&self.passed, &self.lock)
    pthread_mutex_unlock(&self.lock)
    return not self.closing


cdef void turn_end(turn_t *self) noexcept nogil:
    pthread_mutex_lock(&self.lock)
    self.working = self.granted = self.aborting = False
    pthread_cond_broadcast(&self.passed)
    pthread_mutex_unlock(&self.lock)


cdef c_bool pause(void *data) noexcept nogil:
    """llama.cpp's abort callback, between two nodes. True aborts."""
    cdef turn_t *turn = <turn_t *> data
    cdef bint aborts
    if now() < turn.until:
        return False
    pthread_mutex_lock(&turn.lock)
    if not turn.aborting:
        turn.granted = turn.closing
        pthread_cond_broadcast(&turn.passed)
        while not turn.granted:
            pthread_cond_wait(&turn.passed, &turn.lock)
    aborts = turn.closing or turn.aborting
    pthread_mutex_unlock(&turn.lock)
    return aborts
