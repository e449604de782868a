"""Steps of rows of media: who is to be saved first, who goes on at once, and rows that are not taken or let go of."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from support.media_prompts import MARKER, pixels

from core.test_media import MediaRig, far, ids
from core.test_runner import Rig
from llamafast._core.context import UNLIMITED
from llamafast._core.sequence import PHASE_FOLLOWING
from llamafast._core.spans import Span
from llamafast._core.step import FINISHED, PAUSED, SAVE_DUE
from llamafast.engine.pace import Pace

PACE = Pace()
PICTURE, OTHER, LARGE = pixels(96, 80, 1), pixels(96, 80, 5), pixels(200, 160, 2)
# long enough to be found where two prompts begin with it
TEXT = f"{'hello there ' * 20}{MARKER} what is it"


@pytest.fixture
def rig():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=64)
    yield rig
    rig.close()


@pytest.fixture
def partitioned():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=64, n_seq_max=4, kv_unified=False)
    yield rig
    rig.close()


def row_of(prompt):
    """Where the first span begins."""
    return next(i for i, token in enumerate(prompt.tokens) if token < -1)


def stand_before_media(rig, *sequences):
    """Let sequences that have no rows yet compute what is before these."""
    while any(sequence.awaited is None for sequence in sequences):
        assert rig.runner.run(1) in (PAUSED, SAVE_DUE)


def test_who_is_to_be_saved_is_due_until_it_was(rig):
    """There may have been no time for it, and it computes no media before: nobody would ask again."""
    expected = rig.alone(rig.with_media(TEXT, [PICTURE])[0])
    sequence, prompt = rig.with_media(TEXT, [PICTURE], tag=2)
    sequence.save_at = row_of(prompt)
    rig.runner.add(sequence)
    while sequence.n_past < sequence.save_at:
        status = rig.runner.run(1)
    for _ in range(3):
        assert status == SAVE_DUE
        assert rig.runner.save_due() == [sequence]
        assert sequence.n_past == sequence.save_at
        status = rig.runner.run(100)
        assert not rig.runner.idled
    sequence.save_at = UNLIMITED
    assert far(rig.first_logprobs()[2], expected) < 1e-3


def test_who_is_due_is_told_behind_the_media_of_others(rig):
    due, prompt = rig.with_media(TEXT, [PICTURE], tag=1)
    due.save_at = row_of(prompt)
    other, its_prompt = rig.with_media(f"what is {TEXT}", [LARGE], tag=2, give=False)
    rig.runner.add(due)
    rig.runner.add(other)
    stand_before_media(rig, other)
    assert due.n_past == due.save_at
    rig.give(other, its_prompt)
    before = other.n_past
    assert rig.runner.run(100) == SAVE_DUE
    assert other.n_past > before
    assert due.n_past == due.save_at
    rig.runner.clear()


def test_who_has_ended_is_not_due(rig):
    sequence, prompt = rig.with_media(TEXT, [PICTURE])
    sequence.save_at = row_of(prompt)
    rig.runner.add(sequence)
    while rig.runner.run(1) != SAVE_DUE:
        pass
    rig.runner.halt(sequence)
    assert rig.runner.run(100) == PAUSED
    assert rig.runner.idled
    rig.tidy()


@pytest.mark.parametrize("memory", ["rig", "partitioned"])
def test_who_has_taken_a_prefix_goes_on_with_its_media_at_once(memory, request):
    """Nobody else has a row, so nobody would ask again."""
    rig = request.getfixturevalue(memory)
    expected = rig.alone(rig.with_media(TEXT, [OTHER])[0])
    first, prompt = rig.with_media(TEXT, [PICTURE], tag=1, give=False)
    second, _ = rig.with_media(TEXT, [OTHER], tag=2)
    rig.runner.add(first)
    rig.runner.add(second)
    stand_before_media(rig, first)
    assert (second.phase, second.n_past) == (PHASE_FOLLOWING, 0)
    while (status := rig.runner.run(1000)) == PAUSED:
        assert not rig.runner.idled
    assert status == FINISHED
    assert (second.finished, first.awaited) == (True, 0)
    assert rig.runner.counts()["prefix_hits"] >= row_of(prompt) - 1
    rig.give(first, prompt)
    assert far(rig.first_logprobs()[2], expected) < 1e-3


def led_and_waiting(rig, **options):
    """One that computes text, and one that begins with it and waits for rows behind it."""
    waits, prompt = rig.with_media(TEXT, [PICTURE], tag=2, give=False)
    leads = rig.sequence([*prompt.tokens[: row_of(prompt)], 60, 61], tag=1, **options)
    rig.runner.add(leads)
    rig.runner.add(waits)
    return leads, waits, prompt


def test_between_partitions_nothing_is_taken_before_rows_are_here(partitioned):
    """Data are copied by the next step: whoever comes to the leader's place before that brings its own."""
    rig = partitioned
    expected = rig.alone(rig.with_media(TEXT, [PICTURE])[0])
    tokens = [33 + 7 * i % 300 for i in range(80)]
    source = rig.sequence(tokens, tag=3)
    rig.runner.add(source)
    while source.n_past < 79:
        rig.runner.run(1)
    saved = rig.runner.save(source, 0, source.n_past)
    rig.runner.clear()
    rig.collect()
    leads, waits, prompt = led_and_waiting(rig, max_tokens=1)
    while not leads.finished:
        rig.runner.run(1)
    assert rig.runner.run(10) == PAUSED
    assert (waits.phase, waits.n_past) == (PHASE_FOLLOWING, 0)
    rig.tidy()
    comes = rig.sequence(tokens, tag=4, max_tokens=1)
    rig.runner.add(comes, 79)
    assert rig.runner.restore(comes, saved, 0, 79)
    rig.give(waits, prompt)
    assert far(rig.first_logprobs()[2], expected) < 1e-3


def test_between_partitions_a_prefix_is_taken_once_rows_are_here(partitioned):
    rig = partitioned
    expected = rig.alone(rig.with_media(TEXT, [PICTURE])[0])
    leads, waits, prompt = led_and_waiting(rig, max_tokens=50)
    while leads.n_tokens < leads.n_prompt + 3:
        rig.runner.run(1)
    assert (waits.phase, waits.n_past) == (PHASE_FOLLOWING, 0)
    before = rig.runner.counts()["prefix_hits"]
    rig.give(waits, prompt)
    while not waits.finished:
        rig.runner.run(1)
    assert rig.runner.counts()["prefix_hits"] - before >= row_of(prompt) - 1
    assert not leads.finished
    assert far(rig.first_logprobs()[2], expected) < 1e-3


def test_in_one_memory_a_prefix_is_taken_before_rows_are_here(rig):
    leads, waits, prompt = led_and_waiting(rig, max_tokens=50)
    while waits.phase == PHASE_FOLLOWING:
        assert rig.runner.run(1) == PAUSED
    assert waits.n_past == row_of(prompt)
    assert not leads.finished
    rig.runner.clear()


def test_more_rows_at_one_go_than_a_step_takes_are_refused(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), n_ubatch=32)
    rows = np.zeros(33 * 64, np.float32)
    for causal, n_rows in ((False, 33), (False, 32), (True, 33)):
        sequence = rig.sequence([1, 2, *ids(n_rows), 3], spans=(Span(2, n_rows, n_rows, causal),), max_tokens=1)
        rig.runner.add(sequence)
        if n_rows > 32 and not causal:
            with pytest.raises(ValueError, match="33 rows at one go, of 32"):
                rig.runner.give_rows(sequence, 0, rows)
            stand_before_media(rig, sequence)
            assert rig.runner.run(10) == PAUSED
            rig.runner.remove(sequence)
        else:
            rig.runner.give_rows(sequence, 0, rows[: n_rows * 64])
            rig.run()
    rig.close()


def test_rows_are_held_until_they_are_in_memory_or_not_wanted(rig):
    sequence, prompt = rig.with_media(f"{MARKER} and {MARKER} what", [PICTURE, OTHER], give=False)
    given = []
    for i, rows in enumerate(prompt.rows):
        copy = rows.copy()
        given.append(weakref.ref(copy))
        rig.runner.give_rows(sequence, i, copy)
    del copy
    sequence.drop_rows(wanted=True)
    assert all(rows() is not None for rows in given)
    rig.runner.add(sequence)
    second = [i for i, token in enumerate(prompt.tokens) if token < -1 and not token & 1][1]
    while sequence.n_past < second:
        rig.runner.run(1)
    assert sequence.n_past < second + len(prompt.rows[1]) // rig.projector.width
    sequence.drop_rows(wanted=True)
    assert given[0]() is None
    assert given[1]() is not None
    sequence.drop_rows()
    assert given[1]() is None
    assert sequence.awaited == 1
    rig.runner.clear()


def test_parts_of_media_and_of_text_have_sizes_of_their_own(rig):
    """A picture has fewer positions than rows, and a size that is known is known by the number of tokens."""
    sequence, prompt = rig.with_media(TEXT, [LARGE])
    rig.runner.add(sequence)
    while not sequence.finished:
        rig.runner.run(100)
    row, n_rows = row_of(prompt), sum(token < -1 for token in prompt.tokens)
    after = sequence.cut_behind(row + 1)
    assert after == row + n_rows
    sizes = [len(rig.runner.save(sequence, row, after))]
    sizes += [len(rig.runner.save(sequence, 1, 1 + n)) for n in range(1, row)]
    assert sizes[1:] == sorted(set(sizes[1:]))
    if n_rows < row:
        assert sizes[0] == sizes[n_rows]
    assert len(rig.runner.save(sequence, row, after)) == sizes[0]
    rig.tidy()


def test_what_prompts_have_beside_media_stretches_a_step_no_more_than_these():
    """Where they may not at all, it is the rows that a prompt gets in any case; others have what any prompt may."""
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=64, pace={"media_stretch": 1.0})
    stream = rig.sequence([40], 1, max_tokens=500, ignore_eos=True)
    rig.runner.add(stream)
    rig.runner.run(8)  # what a row takes is known
    looks, _ = rig.with_media(TEXT, [PICTURE], tag=2)
    reads, also_reads = (rig.sequence([50 + tag, *range(60, 260)], tag) for tag in (3, 4))
    rig.runner.add(looks)
    for n_steps in range(1, 4):
        rig.runner.run(1)
        assert looks.n_past == n_steps * PACE.min_prefill
    rig.runner.add(reads)
    rig.runner.add(also_reads)
    while also_reads.n_past < 200:
        before = looks.n_past
        rig.runner.run(1)
        # the first that came advances still
        assert before < looks.n_past <= before + PACE.min_prefill
    rig.runner.clear()
    rig.close()
