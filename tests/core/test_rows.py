"""How long others may compute between two steps that decode, in seconds; and which rows prompts get."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from core.inside import prompt_rows, spare_seconds
from core.test_runner import Rig
from llamafast.engine.pace import Pace

PACE = Pace()


def spare_after(*args, target_itl=0.0, **step):
    return spare_seconds(asdict(Pace(target_itl=target_itl)), *args, **step)[0]


def media_spare_after(*args, target_itl=0.0, **step):
    return spare_seconds(asdict(Pace(target_itl=target_itl)), *args, **step)[1]


@pytest.mark.parametrize(("seconds", "n_decode", "spare"), [
    (0.06, 8, 0.036),       # 1.6 steps in all
    (1.0, 64, 0.6),
    (0.016, 1, 0.044),      # 60 ms in all
    (0.001, 64, 0.059),
])  # fmt: skip
def test_who_decodes_sees_no_pause(seconds, n_decode, spare):
    assert spare_after(seconds, n_decode) == pytest.approx(spare)


@pytest.mark.parametrize(("seconds", "n_decode", "spare"), [
    (0.02, 8, 0.016),       # four fifths of the step, however little that is
    (0.001, 64, 0.0008),
    (1.0, 64, 0.6),         # and never more than anybody may
    (0.3, 0, 0.3),          # nobody decodes
])  # fmt: skip
def test_rows_of_media_take_four_fifths_of_the_step_and_no_longer(seconds, n_decode, spare):
    assert media_spare_after(seconds, n_decode) == pytest.approx(spare)


def test_a_target_is_what_rows_of_media_may_take_too():
    assert media_spare_after(0.01, 8, target_itl=0.05) == pytest.approx(0.04)


@given(st.floats(1e-4, 5), st.integers(1, 256), st.integers(0, 400), st.floats(1e-5, 0.1))
def test_a_gap_is_bounded_whoever_waits(seconds, n_decode, n_prefill, per_row):
    """The step as it was and what follows it, unless its prompt rows took all of that."""
    spare = spare_after(seconds, n_decode, n_prefill=n_prefill, per_row=per_row)
    decode_seconds = min(seconds, per_row * n_decode) if n_prefill else seconds
    assert spare <= max(PACE.gap_stretch * decode_seconds - seconds, PACE.gap_seconds - seconds, 0.1 * seconds) + 1e-9
    assert spare >= 0.1 * seconds - 1e-9


def test_what_prompt_rows_of_the_step_took_has_gone_already():
    """Of 1.6 times what 4 decode rows take alone; a tenth of the step is left in any case."""
    assert spare_after(0.1, 4, n_prefill=4, per_row=0.014) == pytest.approx(0.01)
    assert spare_after(0.1, 4, n_prefill=4, per_row=0.02) == pytest.approx(0.028)
    assert spare_after(1.0, 4, n_prefill=6, per_row=0.1) == pytest.approx(0.1)


def test_others_have_the_time_where_nobody_decodes():
    assert spare_after(0.3, 0) == 0.3


def test_a_target_leaves_what_the_step_did_not_take_and_never_nothing():
    assert spare_after(0.03, 8, target_itl=0.05) == pytest.approx(0.02)
    assert spare_after(0.08, 8, target_itl=0.05) == pytest.approx(0.008)


@pytest.mark.parametrize(("n_decode", "share", "waited", "n_rows"), [
    (8, 1.0, 0.0, 52),      # 60 ms in all
    (8, 1.0, 0.02, 32),
    (8, 0.5, 0.0, 26),      # the other half is for rows of media,
    (8, 0.5, 0.02, 26),     # which have had it
    (8, 0.5, 0.04, 12),
    (8, 1.0, 1.0, 4),       # a prompt advances in any case
    (0, 1.0, 1.0, 500),     # nobody has waited who decodes
])  # fmt: skip
def test_prompts_have_what_is_left_of_a_gap(n_decode, share, waited, n_rows):
    found = prompt_rows(asdict(PACE), n_decode, per_row=0.001, share=share, waited=waited)
    assert found == pytest.approx(n_rows, abs=1)


@pytest.mark.parametrize(("n_decode", "target_itl", "waited", "n_rows"), [
    (8, 0.0, 0.0, 6),       # four fifths of the step more
    (100, 0.0, 0.0, 60),    # and never more than any prompt gets
    (8, 0.05, 0.0, 42),     # unless somebody said what it may be
    (8, 0.0, 1.0, 4),
    (0, 0.0, 0.0, 500),
])  # fmt: skip
def test_prompts_with_media_stretch_a_step_as_their_media_do(n_decode, target_itl, waited, n_rows):
    pace = asdict(Pace(target_itl=target_itl))
    assert prompt_rows(pace, n_decode, per_row=0.001, waited=waited, of_media=True) == pytest.approx(n_rows, abs=1)


def test_whatever_took_the_time_since_the_last_tokens_is_a_part_of_the_gap(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), n_batch=512)
    stream = rig.sequence([40], 1, max_tokens=500, ignore_eos=True)
    rig.runner.add(stream)
    rig.runner.run(8)  # what a row takes is known
    late, later = (rig.sequence(range(50, 250), tag, salt=b"%d" % tag) for tag in (2, 3))
    rig.runner.add(late)
    time.sleep(PACE.gap_seconds)
    rig.runner.run(1)
    assert late.n_past == PACE.min_prefill
    # where nobody runs nobody waits, however long
    rig.runner.clear()
    time.sleep(PACE.gap_seconds)
    rig.runner.add(rig.sequence([41], 4, max_tokens=500, ignore_eos=True))
    rig.runner.add(later)
    rig.runner.run(1)
    assert later.n_past > PACE.min_prefill
    rig.runner.clear()
    rig.close()


def test_prompts_that_are_scored_together_share_the_logits_of_a_step(tiny_model):
    """64 MiB, of which 110 rows of 151,936 logits are the most that fit, however many prompts they belong to."""
    rig = Rig(tiny_model("tiny-llama-v152k"), n_batch=512)
    scored = [
        rig.sequence(range(40, 100), tag, max_tokens=0, top_logprobs=0, score_prompt=True, salt=bytes([tag]))
        for tag in range(8)
    ]
    for sequence in scored:
        rig.runner.add(sequence)
    rows, before = [], 0
    while len(rig.runner.finished()) < 8:
        rig.runner.run(1)
        done = sum(sequence.n_past for sequence in scored)
        rows.append(done - before)
        before = done
    rig.tidy()
    rig.close()
    assert sum(rows) == 8 * 60
    assert max(rows) <= 2**26 // (4 * 151_936) < 2 * max(rows)


def test_a_long_prompt_that_is_scored_does_not_wait_for_short_ones(tiny_model):
    """Of whom there are always enough to take all the logits of a step."""
    rig = Rig(tiny_model("tiny-llama-v152k"), n_batch=512, prefill_chunk=400)

    def scored(tag, n):
        return rig.sequence(range(40, 40 + n), tag, max_tokens=0, top_logprobs=0, score_prompt=True, salt=b"%d" % tag)

    # beside somebody who decodes the chunk is what prompts get
    rig.runner.add(rig.sequence([40], 100, max_tokens=500, ignore_eos=True))
    rig.runner.run(2)
    first = scored(0, 400)
    rig.runner.add(first)
    shorts = 0
    progress = [0]
    while first not in rig.tidy():
        while rig.runner.n_running < 6:
            shorts += 1
            assert shorts < 60
            rig.runner.add(scored(shorts, 100))
        rig.runner.run(1)
        progress.append(first.n_past)
    rig.runner.clear()
    rig.close()
    assert all(after > before for before, after in pairwise(progress[:-1]))
    assert shorts > 3
