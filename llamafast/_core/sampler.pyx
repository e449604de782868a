"""How one sequence chooses its tokens: parameters, checked and brought into the form that draws work on."""
from libc.float cimport FLT_MAX
from libc.math cimport isfinite
from libc.stdint cimport INT32_MAX, int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from .draw cimport (
    MAX_STAGES, STAGE_DRY, STAGE_INFILL, STAGE_MIN_P, STAGE_MIROSTAT, STAGE_PENALTIES, STAGE_TEMPERATURE, STAGE_TOP_K,
    STAGE_TOP_N_SIGMA, STAGE_TOP_P, STAGE_TYPICAL_P, STAGE_XTC, bias_t, draw_token, sampler_t, scratch_free,
    scratch_init, scratch_t, stage_t,
)
from .dry cimport Breakers, dry_free
from .infill cimport Infill
from .leaks cimport SAMPLER, born, died
from .penalties cimport penalize, penalties_t
from .stages cimport draw_by_stages

from operator import index

# The stages under llama-server's names, in its default order.
cdef dict STAGES = {
    "penalties": STAGE_PENALTIES, "dry": STAGE_DRY, "top_n_sigma": STAGE_TOP_N_SIGMA, "top_k": STAGE_TOP_K,
    "typ_p": STAGE_TYPICAL_P, "top_p": STAGE_TOP_P, "min_p": STAGE_MIN_P, "xtc": STAGE_XTC,
    "temperature": STAGE_TEMPERATURE, "infill": STAGE_INFILL,
}
# Those that need no candidates, in the order in which ``draw`` takes them.
cdef tuple ON_THE_ROW = (STAGE_PENALTIES, STAGE_TOP_K, STAGE_TOP_P, STAGE_MIN_P, STAGE_TEMPERATURE)

cdef Breakers NO_BREAKERS = Breakers()


cdef class Sampler:
    """How one sequence chooses its tokens.

    ``temperature`` 0 or below is greedy; ``top_k`` 0, ``top_p``, ``typical_p`` and ``repetition_penalty`` 1 and all
    other parameters 0 are off, as are ``top_n_sigma`` below 0 and ``xtc_threshold`` above 0.5; ``top_p`` 0 keeps one
    token. Penalties look at the last ``penalty_last_n`` tokens of the history, DRY at the last ``dry_penalty_last_n``,
    at all of it with -1. ``dry_breakers`` are what its repetitions do not reach back over.
    ``logit_bias`` is pairs of token id and bias, which add up. ``seed`` is an integer of 64 bits, signed or not.
    ``samplers`` are the stages in order, under llama-server's names; what is not among them is off; that named infill
    needs an ``infill``, which keeps them in one thread. ``mirostat`` 1 or 2 takes the place of all stages but
    penalties, DRY and temperature. Nothing has a default here: what a request gets
    that says nothing is the engine's to say.

    Raises ValueError for a value that is not finite or out of range.
    """

    def __cinit__(self, *_, **__):
        born(SAMPLER)
        self.counted = True
        self.breakers = NO_BREAKERS

    def __init__(
        self, int32_t n_vocab, *, double temperature, top_k, double top_p, double min_p, double typical_p,
        double top_n_sigma, double xtc_probability, double xtc_threshold, double dynatemp_range,
        double dynatemp_exponent, int mirostat, double mirostat_tau, double mirostat_eta, double repetition_penalty,
        double presence_penalty, double frequency_penalty, penalty_last_n, double dry_multiplier, double dry_base,
        dry_allowed_length, dry_penalty_last_n, logit_bias, seed, samplers, Breakers dry_breakers=None,
        Infill infill=None,
    ):
        cdef sampler_t *s = &self.state
        if n_vocab < 1:
            raise ValueError(f"n_vocab is {n_vocab}: expected at least 1")
        if s.n_vocab:
            raise ValueError("it is made already")
        if mirostat not in (0, 1, 2):
            raise ValueError(f"mirostat is {mirostat}: expected 0, 1 or 2")
        s.n_vocab = s.penalties.counts.n_vocab = s.dry.longest.n_vocab = n_vocab
        s.seed = seed_bits(seed)
        s.temperature = finite("temperature", min(temperature, FLT_MAX) if isfinite(temperature) else temperature)
        s.top_k = min(whole("top_k", top_k, 0), n_vocab)
        s.top_p = share("top_p", top_p)
        s.min_p = share("min_p", min_p)
        s.typical_p = share("typical_p", typical_p)
        s.top_n_sigma = finite("top_n_sigma", top_n_sigma)
        s.xtc_probability = share("xtc_probability", xtc_probability)
        s.xtc_threshold = share("xtc_threshold", xtc_threshold)
        s.dynatemp_range = finite("dynatemp_range", dynatemp_range)
        s.dynatemp_exponent = finite("dynatemp_exponent", dynatemp_exponent)
        s.mirostat = mirostat
        s.mirostat_tau = finite("mirostat_tau", mirostat_tau)
        s.mirostat_eta = finite("mirostat_eta", mirostat_eta)
        s.mirostat_mu = 2 * s.mirostat_tau
        s.penalties.repetition = positive("repetition_penalty", repetition_penalty)
        s.penalties.presence = finite("presence_penalty", presence_penalty)
        s.penalties.frequency = finite("frequency_penalty", frequency_penalty)
        s.penalties.last_n = window("penalty_last_n", penalty_last_n)
        s.dry.multiplier = finite("dry_multiplier", dry_multiplier)
        s.dry.base = positive("dry_base", dry_base)
        s.dry.allowed_length = whole("dry_allowed_length", dry_allowed_length, 0)
        s.dry.last_n = window("dry_penalty_last_n", dry_penalty_last_n)
        if dry_breakers is not None:
            self.breakers = dry_breakers
        s.dry.breakers = &self.breakers.table
        copy_bias(s, list(logit_bias))
        self.infill = infill
        if infill is not None:
            s.infill = infill.stage
        choose_stages(s, tuple(samplers))

    def __dealloc__(self):
        if self.counted:
            died(SAMPLER)
        if not self.borrows:
            free(self.state.bias)
        free(self.state.penalties.counts.slots)
        dry_free(&self.state.dry)
        scratch_free(&self.own_scratch)

    def reseeded(self, seed):
        """Another sampler of the same parameters, at its start, that draws other numbers. Cheap: what is large in the
        parameters is shared."""
        cdef uint64_t bits = seed_bits(seed)
        cdef Sampler other = Sampler.__new__(Sampler)
        cdef sampler_t *s = &other.state
        other.borrows = True
        s[0] = self.state
        s.seed = bits
        s.mirostat_mu = 2 * s.mirostat_tau
        memset(&s.penalties.counts, 0, sizeof(s.penalties.counts))
        memset(&s.dry.longest, 0, sizeof(s.dry.longest))
        s.penalties.counts.n_vocab = s.dry.longest.n_vocab = s.n_vocab
        s.dry.repeat = NULL
        s.dry.capacity = 0
        other.breakers = self.breakers
        other.infill = self.infill
        other.owner = self if self.owner is None else self.owner
        return other

    def pick(self, float[::1] row not None, const int32_t[::1] history not None):
        """The token that follows ``history``; edits ``row`` (n_vocab,) in place.

        Between two calls the history may grow, and shrink and change within its last 64 tokens.
        """
        cdef int32_t token
        if row.shape[0] != self.state.n_vocab:
            raise ValueError(f"a row of {row.shape[0]} logits for a vocabulary of {self.state.n_vocab}")
        if history.shape[0] > INT32_MAX:
            raise ValueError(f"a history of {history.shape[0]} tokens")
        if self.own_scratch.n_vocab == 0 and scratch_init(&self.own_scratch, self.state.n_vocab) != 0:
            raise MemoryError
        token = sampler_pick(
            &self.state, &self.own_scratch, &row[0],
            &history[0] if history.shape[0] > 0 else NULL, <int32_t> history.shape[0])
        if token < 0:
            raise MemoryError
        return token


cdef int32_t sampler_pick(
    sampler_t *self, scratch_t *scratch, float *row, const int32_t *history, int32_t n_history
) noexcept nogil:
    cdef int32_t i
    if scratch.n_vocab < self.n_vocab:
        return -1
    for i in range(self.n_bias):
        row[self.bias[i].token] += self.bias[i].bias
    if self.n_stages > 0:
        return draw_by_stages(self, scratch, row, history, n_history)
    if self.penalties.last_n != 0 and penalize(&self.penalties, row, history, n_history) != 0:
        return -1
    return draw_token(self, scratch, row, <uint32_t> n_history)


cdef uint64_t seed_bits(seed) except? 0:
    seed = index(seed)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}: expected an integer of 64 bits")
    return seed & 0xFFFFFFFFFFFFFFFF


cdef float finite(str name, double value) except? -1:
    cdef float single = <float> value
    if not isfinite(single):
        raise ValueError(f"{name} is {value}: expected a finite number")
    return single


cdef float share(str name, double value) except? -1:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: expected a number from 0 to 1")
    return <float> value


cdef float positive(str name, double value) except? -1:
    if <float> value <= 0:
        raise ValueError(f"{name} is {value}: expected more than 0")
    return finite(name, value)


cdef int32_t whole(str name, value, int32_t least) except? -1:
    """Larger numbers than there are tokens all mean the same."""
    value = index(value)
    if value < least:
        raise ValueError(f"{name} is {value}: expected {least} or more")
    return min(value, INT32_MAX)


cdef int32_t window(str name, value) except? -1:
    """A number of tokens, -1: all."""
    cdef int32_t n = whole(name, value, -1)
    return INT32_MAX if n == -1 else n


cdef int choose_stages(sampler_t *self, tuple samplers) except -1:
    """Leave the stages empty where the ones that have an effect are those of the row itself, in its order."""
    cdef bint warm
    cdef penalties_t *penalties = &self.penalties
    effective = {
        STAGE_PENALTIES: penalties.repetition != 1 or penalties.presence != 0 or penalties.frequency != 0,
        STAGE_DRY: self.dry.multiplier != 0 and self.dry.base >= 1 and self.dry.last_n != 0,
        STAGE_TOP_N_SIGMA: self.top_n_sigma > 0,
        STAGE_TOP_K: 0 < self.top_k < self.n_vocab,
        STAGE_TYPICAL_P: self.typical_p < 1,
        STAGE_TOP_P: self.top_p < 1,
        STAGE_MIN_P: self.min_p > 0,
        STAGE_XTC: self.xtc_probability > 0 and self.xtc_threshold <= 0.5,
        STAGE_TEMPERATURE: self.temperature != 1 or self.dynatemp_range > 0,
        STAGE_INFILL: True,
    }
    if len(samplers) > MAX_STAGES:
        raise ValueError(f"samplers has {len(samplers)} stages: expected at most {MAX_STAGES}")
    if unknown := [name for name in samplers if name not in STAGES]:
        raise ValueError(f"samplers has {unknown[0]!r}: expected one of {', '.join(STAGES)}")
    if "infill" in samplers and self.infill == NULL:
        raise ValueError("samplers has 'infill', which needs a vocabulary")
    stages = [STAGES[name] for name in samplers]
    warm = STAGE_TEMPERATURE in stages
    active = [stage for stage in stages if effective[stage]]
    if self.mirostat:
        kept = STAGE_PENALTIES, STAGE_DRY, STAGE_TEMPERATURE
        active = [stage for stage in active if stage in kept] + [STAGE_MIROSTAT]
    if STAGE_PENALTIES not in active:
        penalties.last_n = 0
    if active != [stage for stage in ON_THE_ROW if stage in active] or (warm and self.dynatemp_range > 0):
        for stage in active:
            self.stages[self.n_stages] = <stage_t> <int> stage
            self.n_stages += 1
        return 0
    self.greedy = warm and self.temperature <= 0
    # a scale of infinity would turn the best token, 0 above the best, into NaN
    self.scale = 0.0 if self.greedy else <float> min(1 / self.temperature, 1e30) if warm else 1.0
    self.top_k = self.top_k if STAGE_TOP_K in active else 0
    self.top_p = self.top_p if STAGE_TOP_P in active else 1.0
    self.min_p = self.min_p if STAGE_MIN_P in active else 0.0
    return 0


cdef int copy_bias(sampler_t *self, list pairs) except -1:
    cdef Py_ssize_t i
    if not pairs:
        return 0
    self.bias = <bias_t *> malloc(<size_t> len(pairs) * sizeof(bias_t))
    if self.bias == NULL:
        raise MemoryError
    for i, (token, bias) in enumerate(pairs):
        if not 0 <= index(token) < self.n_vocab:
            raise ValueError(f"logit_bias: token id {token} is outside the vocabulary of {self.n_vocab}")
        self.bias[i] = bias_t(token, finite("logit_bias", bias))
    self.n_bias = <int32_t> len(pairs)
    return 0
