"""How many drafted tokens a step decodes: as many as make it give most useful rows per second.

``useful`` rows are computed in any case. For each number of drafted rows the likeliest ones are the best, and what
steps take follows no line; so every number is tried.
"""
from libc.stdint cimport int32_t
from libc.string cimport memset

from .cost cimport MAX_TIMED, times_of, times_with
from .headers.llama cimport LLAMA_MAX_SEQ


cdef double plan_rows(
    const times_t *times, const float **survival, const int32_t *lengths, int32_t n, int32_t useful, int32_t room,
    int32_t *taken
) noexcept nogil:
    """Where rows cost the same whosever they are; up to ``room`` of them. How many times as much it gives a second as
    no draft would."""
    cdef int32_t order[MAX_TIMED]
    cdef int32_t following[LLAMA_MAX_SEQ]
    cdef int32_t i, rows, likeliest, n_best = 0
    cdef double expected = 0, value, without = useful / times_with(times, useful, 0), best = without
    memset(following, 0, <size_t> n * sizeof(int32_t))
    for rows in range(1, min(room, <int32_t> MAX_TIMED) + 1):
        likeliest = -1
        for i in range(n):
            if following[i] < lengths[i] and (
                likeliest < 0 or survival[i][following[i]] > survival[likeliest][following[likeliest]]
            ):
                likeliest = i
        if likeliest < 0:
            break
        expected += survival[likeliest][following[likeliest]]
        following[likeliest] += 1
        order[rows - 1] = likeliest
        value = (useful + expected) / times_with(times, useful, rows)
        if value > best:
            best = value
            n_best = rows
    for rows in range(n_best):
        taken[order[rows]] += 1
    return best / without


cdef double plan_passes(
    const times_t *times, const float **survival, const int32_t *lengths, int32_t n, int32_t useful, int32_t room,
    int32_t *taken
) noexcept nogil:
    """Where each number of rows that sequences have is a pass of its own: as many for some as for others, or none."""
    cdef double worth[LLAMA_MAX_SEQ]
    cdef bint chosen[LLAMA_MAX_SEQ]
    cdef int32_t i, k, rows, most = 0, likeliest
    cdef double expected, value, without = useful / times_of(times, useful), best = without
    memset(worth, 0, <size_t> n * sizeof(double))
    for i in range(n):
        most = max(most, lengths[i])
    for k in range(1, most + 1):
        memset(chosen, 0, <size_t> n * sizeof(bint))
        for i in range(n):
            worth[i] += survival[i][k - 1] if k <= lengths[i] else 0
        expected = 0
        for rows in range(1, min(n, room // k) + 1):
            likeliest = -1
            for i in range(n):
                if not chosen[i] and lengths[i] >= k and (likeliest < 0 or worth[i] > worth[likeliest]):
                    likeliest = i
            if likeliest < 0:
                break
            chosen[likeliest] = True
            expected += worth[likeliest]
            value = times_of(times, rows * (1 + k)) + (times_of(times, useful - rows) if useful > rows else 0)
            value = (useful + expected) / value
            if value > best:
                best = value
                for i in range(n):
                    taken[i] = k if chosen[i] else 0
    return best / without
