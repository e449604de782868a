"""What is inside the core and has no Python form there, for tests to look at."""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from llamafast._core.adapters cimport Adapter
from llamafast._core.answers cimport (
    answers_free, answers_init, answers_keep, answers_propose, answers_size, answers_t,
)
from llamafast._core.blocks cimport BLOCK, block_hash, common_run
from llamafast._core.chains cimport chains_find, chains_free, chains_index, chains_t, match_t
from llamafast._core.context cimport Context
from llamafast._core.cost cimport (
    MAX_TIMED, cost_add, cost_add_prompts, cost_fit, cost_init, step_cost_t, times_fill, times_observe, times_of,
    times_t,
)
from llamafast._core.draft cimport proposal_t
from llamafast._core.drafter cimport Drafter
from llamafast._core.dry cimport Breakers, breakers_t
from llamafast._core.embedder cimport Embedder
from llamafast._core.headers.llama cimport (
    llama_adapter_lora, llama_batch_get_one, llama_context, llama_context_default_params, llama_context_params,
    llama_decode, llama_free, llama_get_logits_ith, llama_init_from_model, llama_memory_seq_pos_max,
    llama_set_adapters_lora,
)
from llamafast._core.model cimport Model
from llamafast._core.plan cimport plan_passes, plan_rows, plan_spare, weight_t
from llamafast._core.proposer cimport Proposer
from llamafast._core.rows cimport prefill_budget, quota_init, quota_spare, quota_t
from llamafast._core.runner cimport Runner
from llamafast._core.sequence cimport Sequence, sequence_may_enter, sequence_t
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


def logits_of(Model model not None, int32_t n_vocab, pieces):
    """The logits of the last row of each of ``pieces``, which are tokens (array('i')) and the Adapter that these have,
    or None: llama.cpp alone computes one after another."""
    cdef llama_context_params params = llama_context_default_params()
    cdef llama_context *ctx
    cdef llama_adapter_lora *adapter = NULL
    cdef int32_t[::1] tokens
    cdef float scale = 1
    cdef list told = []
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 1
    # of 16 bits, keys would be rounded, and queries by flash attention
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    ctx = llama_init_from_model(model.model, params)
    if ctx == NULL:
        raise MemoryError
    try:
        for ids, one in pieces:
            tokens = ids
            adapter = NULL if one is None else (<Adapter?> one).adapter
            if llama_set_adapters_lora(ctx, &adapter, 0 if adapter == NULL else 1, &scale):
                raise ValueError("no adapter of this model's")
            if llama_decode(ctx, llama_batch_get_one(&tokens[0], <int32_t> tokens.shape[0])):
                raise ValueError("llama_decode")
            told.append((<char *> llama_get_logits_ith(ctx, -1))[:n_vocab * <Py_ssize_t> sizeof(float)])
    finally:
        llama_free(ctx)
    return told


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
    yet), and how much of that rows of media may take."""
    cdef quota_t quota
    cdef double media
    quota_init(&quota, 1, 1, 0, 1, pace)
    if per_row:
        cost_add(&quota.cost, 1, per_row)
    return quota_spare(&quota, seconds, n_decode + n_prefill, n_decode, &media), media


def prompt_rows(pace, int32_t n_decode, *, double per_row, double share=1, double waited=0, bint of_media=False):
    """How many rows of prompts may join a step, where one row costs ``per_row`` and who decodes has ``waited``."""
    cdef quota_t quota
    quota_init(&quota, 1, 1, 0, 1, pace)
    cost_add(&quota.cost, 1, per_row)
    return prefill_budget(&quota, n_decode, share, waited, 0, of_media)


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


cdef void ask(void *source, const sequence_t *s, int32_t most, proposal_t *proposal) noexcept with gil:
    cdef int32_t token
    proposal.n = proposal.n_matched = 0
    proposal.first = 1
    for token in (<object> source)(s.tag, [s.tokens.ids[i] for i in range(s.tokens.n_certain)], most)[:most]:
        proposal.tokens[proposal.n] = token
        proposal.n += 1


def draft_by(Drafter drafter not None, source):
    """Let ``source(tag, tokens, most)`` draft in the place of all others, and all of it be decoded. Whoever calls holds
    it."""
    drafter.propose = ask
    drafter.proposer = <void *> source


def drafter_of(Runner runner not None):
    """None where nobody drafts."""
    return runner.step.drafter


def proposed(Sequence sequence not None):
    """What was drafted for its last step, whether it was decoded or not."""
    cdef const proposal_t *proposal = &sequence.state.draft.proposal
    return [proposal.tokens[i] for i in range(proposal.n)]


def was_rolled_back(Sequence sequence not None):
    return sequence.state.rolled_back


def set_times(Drafter drafter not None, seconds):
    """What steps take, by their rows from one on."""
    cdef int32_t i
    cdef int32_t[MAX_TIMED] rows
    cdef double[MAX_TIMED] times
    for i in range(<int32_t> len(seconds)):
        rows[i] = i + 1
        times[i] = seconds[i]
    times_fill(&drafter.times, rows, times, <int32_t> len(seconds), 0)
    drafter.times.given = True


def set_call_times(Proposer proposer not None, *, double fixed, double per_row, double per_fed):
    """What its calls take, and in them a row with logits and one without."""
    proposer.fixed, proposer.per_row, proposer.per_fed = fixed, per_row, per_fed


def planned(
    seconds, survival, int32_t useful, int32_t room, *, bint passes, double change=0, int32_t last=0, weights=None,
    double beside=0
):
    """How many of each proposal's tokens, likely as ``survival`` says, are decoded where steps take ``seconds``, one of
    another number of rows than the ``last`` longer by ``change``, and masks ``beside``. ``weights``: what a row of each
    proposal is worth, and the seconds that it takes beside."""
    cdef times_t times
    cdef int32_t i, k, n = <int32_t> len(survival)
    cdef float[256][64] chances
    cdef const float *pointers[256]
    cdef int32_t[256] lengths
    cdef int32_t[256] taken
    cdef weight_t[256] given
    cdef int32_t[MAX_TIMED] rows
    cdef double[MAX_TIMED] measured
    for i in range(<int32_t> len(seconds)):
        rows[i] = i + 1
        measured[i] = seconds[i]
    times.given = True
    times_fill(&times, rows, measured, <int32_t> len(seconds), change)
    times.last = last
    for i in range(n):
        lengths[i] = <int32_t> len(survival[i])
        taken[i] = 0
        pointers[i] = chances[i]
        given[i].worth, given[i].seconds = weights[i] if weights else (1, 0)
        for k in range(lengths[i]):
            chances[i][k] = survival[i][k]
    if passes:
        plan_passes(&times, pointers, lengths, given, n, useful, room, beside, taken)
    else:
        plan_rows(&times, pointers, lengths, given, n, useful, room, beside, taken)
    return [taken[i] for i in range(n)]


def spare(seconds, int32_t useful, double stretch, double change=0):
    """The drafted rows that a step of ``useful`` ones takes ``stretch`` times as long for at most."""
    cdef times_t times
    cdef int32_t i
    cdef int32_t[MAX_TIMED] rows
    cdef double[MAX_TIMED] measured
    for i in range(<int32_t> len(seconds)):
        rows[i] = i + 1
        measured[i] = seconds[i]
    times_fill(&times, rows, measured, <int32_t> len(seconds), change)
    return plan_spare(&times, useful, stretch)


cdef class StepTimes:
    """What steps take, of ``measured`` seconds by their rows at first."""
    cdef times_t times

    def __cinit__(self, dict measured):
        cdef int32_t i
        cdef int32_t[MAX_TIMED] rows
        cdef double[MAX_TIMED] seconds
        for i, one in enumerate(sorted(measured)):
            rows[i] = one
            seconds[i] = measured[one]
        times_fill(&self.times, rows, seconds, <int32_t> len(measured), 0)

    def of(self, int32_t rows):
        return times_of(&self.times, rows)

    def attend(self, double per_cell, double cells):
        self.times.per_cell, self.times.cells = per_cell, cells

    def observe(self, int32_t rows, double seconds):
        times_observe(&self.times, rows, seconds)
        self.times.last = rows


cdef class Chains:
    """Of one text that grows."""
    cdef chains_t chains

    def __dealloc__(self):
        chains_free(&self.chains)

    def index(self, const int32_t[::1] text not None, int32_t most):
        if chains_index(&self.chains, &text[0], <int32_t> text.shape[0], most) < 0:
            raise MemoryError
        return self.chains.n

    def find(self, const int32_t[::1] text not None, int32_t hint=0):
        """Where the text may go on as before, behind how many tokens that are the same, None: nowhere."""
        cdef match_t match = chains_find(&self.chains, &text[0], &text[0], <int32_t> text.shape[0], hint)
        return (match.at, match.n, match.agreed) if match.n else None


cdef class Answers:
    """What was answered lately, in so many bytes."""
    cdef answers_t answers

    def __cinit__(self, int64_t n_bytes):
        if answers_init(&self.answers, n_bytes) < 0:
            raise MemoryError

    def __dealloc__(self):
        answers_free(&self.answers)

    @property
    def n_bytes(self):
        return answers_size(&self.answers)

    def keep(self, const int32_t[::1] answer not None, bytes salt, uint64_t seed):
        cdef sequence_t s
        of(&s, answer, salt, seed)
        answers_keep(&self.answers, &s)

    def propose(self, const int32_t[::1] tail not None, bytes salt, uint64_t seed, int32_t most):
        cdef sequence_t s
        cdef proposal_t proposal
        of(&s, tail, salt, seed)
        answers_propose(&self.answers, &s, most, &proposal)
        return [proposal.tokens[i] for i in range(proposal.n)]


cdef void of(sequence_t *s, const int32_t[::1] tokens, bytes salt, uint64_t seed) noexcept:
    """As much of a sequence as answers look at: all of it was generated."""
    memset(s, 0, sizeof(sequence_t))
    s.tokens.ids = <int32_t *> &tokens[0]
    s.tokens.n_prompt = 0
    s.tokens.n_certain = <int32_t> tokens.shape[0]
    s.share.salt = salt
    s.share.n_salt = len(salt)
    s.share.seed = seed
    s.share.private = False
