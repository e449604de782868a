"""What steps of different numbers of rows take beside each other, measured when a model is loaded.

As steps come: several behind one another, not the first one of a size, which has a graph to make; and behind cells,
which each row attends to.
"""
from statistics import median

from libc.math cimport INFINITY
from libc.stdint cimport int32_t

from .context cimport Batch, Context, batch_add, context_decode
from .cost cimport MAX_TIMED, times_fill, times_t
from .headers.clock cimport now, thread_now
from .headers.llama cimport llama_memory_seq_rm, llama_synchronize


# The rows of steps that are timed, the most useful first: what lies between two of them is nearly on their line. And
# how often the time is looked for that nobody held up.
cdef tuple TIMED = (1, 4, 8, 16, 32, 2, 3, 12, 64, 6, 24, 5, 48)
cdef int ROUNDS = 4
# So many steps of one row, behind each other, are as fast as they come when nobody drafts, for weights are all they
# read; or as many as it takes until one is hardly faster than those before.
cdef int STEADY = 6, LEAST_STEADY = 3
cdef double HARDLY = 0.97
# Sizes have this share of the time. In the rest it is measured what cells add, by steps of so many rows behind so many
# of them, or as many as there is time for, but no fewer than the least: less would be lost in what steps differ by.
cdef double SIZES = 0.6
cdef enum:
    DEEP_CELLS = 256
    LEAST_CELLS = 64
    DEEP_ROWS = 8
    DEEP_TRIES = 2


cdef double timing_clock(Context context) noexcept nogil:
    """What steps are timed by. Where CPUs compute, this thread does as much of it as any other, and what others have of
    its CPU is no part of what rows cost."""
    return thread_now() if context.model.on_cpu else now()


cdef dict timing_measure(Context context, times_t *times, int32_t token, double seconds):
    """Fill ``times`` within so long, or in what two steps of one row and one of four take; the seconds by the number of
    rows. Nothing may run; RuntimeError where llama_decode fails."""
    cdef int32_t i, rows, n, most_rows = min(context.n_ubatch, min(context.n_ctx_seq, MAX_TIMED))
    cdef int32_t[16] sizes
    cdef double[16] taken
    cdef double began = now(), until = began + SIZES * seconds
    cdef double first, again, change = 0
    cdef bint steady, known
    cdef dict best = {}
    cdef list changes = []
    cdef Batch batch = Batch(most_rows)
    for _ in range(ROUNDS):
        for rows in TIMED:
            known = len(best) > 1 or rows in best
            if rows > most_rows or (known and now() + 2 * at_most(best, rows) > until):
                continue
            first = step(context, batch, token, rows, 0)
            n = min(<int32_t> (STEADY if rows == 1 else 1), context.n_ctx_seq // rows - 1)
            if n < 1 and now() < until:
                # there is no room behind it
                context.clear()
                best[rows] = min(best.get(rows, INFINITY), step(context, batch, token, rows, 0))
            for i in range(n):
                if now() > until and (rows > 1 or i > 0):
                    break
                again = step(context, batch, token, rows, rows * (1 + i))
                steady = i >= LEAST_STEADY and again > HARDLY * best[rows]
                best[rows] = min(best.get(rows, INFINITY), again)
                if i == 0:
                    # the usual one: the least is what a hindered second step makes of it
                    changes.append(max(0.0, first - again))
                    change = median(changes)
                if steady:
                    break
            if rows not in best:
                # its graph was made in this time too
                best[rows] = first - change if change < first / 2 else first
            context.clear()
    for i, rows in enumerate(sorted(best)):
        sizes[i] = rows
        taken[i] = best[rows]
    times_fill(times, sizes, taken, <int32_t> len(best), change)
    times.per_cell = per_cell(context, batch, token, best, began + seconds)
    return best


cdef double at_most(dict best, int32_t rows) except -1:
    """What a step takes at most, by those that were timed."""
    larger = [size for size in best if size >= rows]
    if larger:
        return best[min(larger)]
    return best[max(best)] * rows / max(best)


cdef double per_cell(Context context, Batch batch, int32_t token, dict best, double until) except -1:
    """What each cell before it adds to a row, in seconds; 0 where there is no time to fill some, or no room."""
    cdef int32_t rows = max(rows for rows in best if rows <= DEEP_ROWS), filled = max(best), position = 0
    cdef double taken = INFINITY, measuring = DEEP_TRIES * <double> best[rows]
    try:
        while (
            position < DEEP_CELLS and position + filled + rows <= context.n_ctx_seq
            and now() + best[filled] + measuring < until
        ):
            step(context, batch, token, filled, position, False)
            position += filled
        if position < LEAST_CELLS:
            return 0
        for _ in range(DEEP_TRIES):
            taken = min(taken, step(context, batch, token, rows, position))
            if not llama_memory_seq_rm(context.memory, 0, position, -1):
                break
        return max(0.0, taken - best[rows]) / (rows * position)
    finally:
        context.clear()


cdef double step(
    Context context, Batch batch, int32_t token, int32_t rows, int32_t position, bint logits=True
) except -1:
    """The seconds of one of so many rows behind so many cells, where they stay."""
    cdef int32_t i, code
    cdef double start
    batch.clear()
    for i in range(rows):
        batch_add(&batch.batch, token, position + i, 0, logits)
    start = timing_clock(context)
    with nogil:
        code = context_decode(context, &batch.batch)
        llama_synchronize(context.ctx)
    start = timing_clock(context) - start
    if code != 0:
        context.clear()
        raise RuntimeError(f"llama_decode returned {code}")
    return start
