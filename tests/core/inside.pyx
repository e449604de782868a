"""What is inside the core and has no Python form there, for tests to look at."""
from libc.stdint cimport int32_t, uint64_t

from llamafast._core.blocks cimport BLOCK, block_hash, common_run
from llamafast._core.context cimport Context
from llamafast._core.cost cimport cost_add, cost_add_prompts, cost_fit, cost_init, step_cost_t
from llamafast._core.dry cimport Breakers, breakers_t
from llamafast._core.embedder cimport Embedder
from llamafast._core.headers.llama cimport llama_memory_seq_pos_max
from llamafast._core.rows cimport quota_init, quota_spare, quota_t
from llamafast._core.sequence cimport Sequence, sequence_may_enter
from llamafast._core.team cimport team_choose, team_init, team_observe, team_t
from llamafast._core.text cimport text_drop, text_feed, text_free, text_init, text_ready, text_t


def common_prefix(const int32_t[::1] a not None, const int32_t[::1] b not None):
    """How many tokens two arrays begin with in common."""
    cdef int32_t limit = <int32_t> min(a.shape[0], b.shape[0])
    return common_run(&a[0], &b[0], limit) if limit else 0


def block_hashes(const int32_t[::1] tokens not None, uint64_t seed):
    """The chained digests of the whole blocks of ``tokens``."""
    cdef list hashes = []
    cdef uint64_t hash = seed
    cdef Py_ssize_t i
    for i in range(tokens.shape[0] // BLOCK):
        hash = block_hash(hash, &tokens[i * BLOCK])
        hashes.append(hash)
    return hashes


def n_direct(Context context not None):
    """Calls of llama_decode that copied no logits."""
    return context.graph.n_direct


def n_attention(Context context not None):
    """Operations in graphs, counted when those were made, whose attention is ours."""
    return context.graph.n_attention


def n_products(Context context not None):
    """Products of graphs that were computed, or were about to be, that are ours."""
    return context.graph.n_products


def n_adapter_changes(Context context not None):
    """How often llama.cpp was given other adapters, and how many it has."""
    if context.groups == NULL:
        return 0, 0
    return context.groups.n_changes, context.groups.active.n


def last_position(Context context not None, int32_t seq_id):
    """The largest one that a sequence has in memory, -1 where it has none."""
    return llama_memory_seq_pos_max(context.memory, seq_id)


def breaker_pairs(Breakers breakers not None):
    """What repetitions do not reach back over, each once, in ascending order: a token and the tokens after it."""
    cdef breakers_t *table = &breakers.table
    cdef int32_t i, k
    return sorted({
        (table.token[i], tuple([table.tails[k] for k in range(table.tail[i], table.tail[i + 1])]))
        for i in range(table.n)
    })


def computes_whole(Embedder embedder not None):
    """Whether an input must be computed in one step."""
    return embedder.whole


def n_cached(Sequence sequence not None):
    """How many prompt tokens were taken from another sequence instead of being computed."""
    return sequence.state.share.n_cached


def may_follow(int phase, int next_phase):
    """Whether a sequence may go from one of PHASE_* to another."""
    return sequence_may_enter(phase, next_phase)


def spare_seconds(pace, double seconds, int32_t n_decode, int32_t n_prefill=0, double per_row=0):
    """How long others may compute after a step of ``seconds``, where one row costs ``per_row`` (0: that is not known
    yet)."""
    cdef quota_t quota
    quota_init(&quota, 1, 0, 1, pace)
    if per_row:
        cost_add(&quota.cost, 1, per_row)
    return quota_spare(&quota, seconds, n_decode + n_prefill, n_decode)


cdef class StepCost:
    """A line fitted to steps, the past's weight falling by ``decay`` with each."""
    cdef step_cost_t cost

    def __cinit__(self, double decay):
        cost_init(&self.cost, decay)

    def add(self, int32_t rows, double seconds):
        cost_add(&self.cost, rows, seconds)

    def add_prompts(self, int32_t rows, double seconds, double weight, double most):
        cost_add_prompts(&self.cost, rows, seconds, weight, most)

    @property
    def excess(self):
        return self.cost.excess

    def fit(self):
        """(fixed, per_row) in seconds. Needs a step with at least one row first."""
        cdef double fixed, per_row
        cost_fit(&self.cost, &fixed, &per_row)
        return fixed, per_row


cdef class TextStream:
    """The text of one sequence: ``feed`` bytes, get what of it became certain. Raises ValueError for an empty stop."""
    cdef text_t text

    def __cinit__(self, stops=()):
        text_init(&self.text, tuple(stop.encode() for stop in stops))

    def __dealloc__(self):
        text_free(&self.text)

    def feed(self, bytes piece not None):
        """(bytes that became certain, whether a stop string was completed)."""
        cdef int stopped = text_feed(&self.text, piece, <int32_t> len(piece))
        if stopped < 0:
            raise MemoryError
        return self._take(self.text.n_pending if stopped else text_ready(&self.text)), bool(stopped)

    def finish(self):
        """The bytes held back, when generation ended for another reason."""
        return self._take(self.text.n_pending)

    def _take(self, int32_t length):
        cdef bytes ready = self.text.pending[:length] if length else b""
        text_drop(&self.text, length)
        return ready


cdef class Team:
    """The choice of a number of threads up to ``n_threads``."""
    cdef team_t team

    def __cinit__(self, int32_t n_threads):
        team_init(&self.team, n_threads)

    @property
    def sizes(self):
        return [self.team.sizes[i] for i in range(self.team.n_sizes)]

    def batch(self, int32_t n_rows, cost):
        """Choose for a batch and observe that it takes ``cost(threads)`` seconds; how many it was."""
        cdef int32_t size = team_choose(&self.team, n_rows)
        team_observe(&self.team, n_rows, size, cost(self.team.sizes[size]))
        return self.team.sizes[size]
