"""How many drafted tokens a step decodes: as many as make it give most useful rows per second.

``useful`` rows are computed in any case. For each number of drafted rows those of most gain are the best, and what
steps take follows no line; so every number is tried. Where rows take seconds of their own beside the step, their gain
depends on how many rows a second there are at best: that is found as Dinkelbach has it (Management Science 13, 1967),
each round from the best of the one before.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memset

from .cost cimport MAX_TIMED, times_of, times_with
from .headers.llama cimport LLAMA_MAX_SEQ

cdef enum:
    MAX_ROUNDS = 4

# What promises to be so much faster at least is done: the best of many guesses is a guess that was too good.
cdef double LEAST_GAIN = 1.05


cdef bint plan_pays(double gain) noexcept nogil:
    """Whether so many times as much a second is promise enough."""
    return gain >= LEAST_GAIN


cdef double plan_rows(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, int32_t *taken
) noexcept nogil:
    """Where rows cost the same whosever they are; up to ``room`` of them. How many times as much it gives a second as
    no draft would."""
    cdef double before, without = useful / (times_with(times, useful, 0) + beside), best = without
    for _ in range(MAX_ROUNDS):
        before = best
        best = best_rows(times, survival, lengths, weights, n, useful, room, beside, before, taken)
        if best <= before:
            break
    return best / without


cdef double best_rows(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, double best, int32_t *taken
) noexcept nogil:
    """The most useful rows a second where ``best`` are known to be had: no more, or ``taken`` says how."""
    cdef int32_t order[MAX_TIMED]
    cdef int32_t following[LLAMA_MAX_SEQ]
    cdef int32_t i, rows, likeliest, n_best = 0
    cdef double rate = best, most, gain, expected = 0, seconds = beside, value
    memset(following, 0, <size_t> n * sizeof(int32_t))
    for rows in range(1, min(room, <int32_t> MAX_TIMED) + 1):
        likeliest = -1
        most = -INFINITY
        for i in range(n):
            if following[i] < lengths[i]:
                gain = weights[i].worth * survival[i][following[i]] - rate * weights[i].seconds
                if gain > most:
                    most = gain
                    likeliest = i
        if likeliest < 0:
            break
        expected += weights[likeliest].worth * survival[likeliest][following[likeliest]]
        seconds += weights[likeliest].seconds
        following[likeliest] += 1
        order[rows - 1] = likeliest
        value = (useful + expected) / (times_with(times, useful, rows) + seconds)
        if value > best:
            best = value
            n_best = rows
    if n_best:
        memset(taken, 0, <size_t> n * sizeof(int32_t))
    for rows in range(n_best):
        taken[order[rows]] += 1
    return best


cdef double plan_passes(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, int32_t *taken
) noexcept nogil:
    """Where each number of rows that sequences have is a pass of its own: as many for some as for others, or none."""
    cdef double before, without = useful / (times_of(times, useful) + beside), best = without
    for _ in range(MAX_ROUNDS):
        before = best
        best = best_passes(times, survival, lengths, weights, n, useful, room, beside, before, taken)
        if best <= before:
            break
    return best / without


cdef double best_passes(
    const times_t *times, const float **survival, const int32_t *lengths, const weight_t *weights, int32_t n,
    int32_t useful, int32_t room, double beside, double best, int32_t *taken
) noexcept nogil:
    """As ``best_rows``."""
    cdef double worth[LLAMA_MAX_SEQ]
    cdef double gain[LLAMA_MAX_SEQ]
    cdef bint chosen[LLAMA_MAX_SEQ]
    cdef int32_t i, k, rows, most = 0, likeliest
    cdef double rate = best, expected, seconds, value
    memset(worth, 0, <size_t> n * sizeof(double))
    for i in range(n):
        most = max(most, lengths[i])
    for k in range(1, most + 1):
        memset(chosen, 0, <size_t> n * sizeof(bint))
        for i in range(n):
            worth[i] += weights[i].worth * survival[i][k - 1] if k <= lengths[i] else 0
            gain[i] = worth[i] - rate * k * weights[i].seconds
        expected = 0
        seconds = beside
        for rows in range(1, min(n, room // k) + 1):
            likeliest = -1
            for i in range(n):
                if not chosen[i] and lengths[i] >= k and (likeliest < 0 or gain[i] > gain[likeliest]):
                    likeliest = i
            if likeliest < 0:
                break
            chosen[likeliest] = True
            expected += worth[likeliest]
            seconds += k * weights[likeliest].seconds
            value = times_of(times, rows * (1 + k)) + (times_of(times, useful - rows) if useful > rows else 0)
            value = (useful + expected) / (value + seconds)
            if value > best:
                best = value
                for i in range(n):
                    taken[i] = k if chosen[i] else 0
    return best


cdef int32_t plan_spare(const times_t *times, int32_t useful, double stretch) noexcept nogil:
    """The most drafted rows with which a step takes up to ``stretch`` times as long, with the graph made for it."""
    cdef int32_t n = 0
    cdef double most = stretch * times_of(times, useful)
    while n < MAX_TIMED and times_of(times, useful + n + 1) + times.change <= most:
        n += 1
    return n
