"""How long others may compute between two steps that decode, in seconds; and which rows prompts get."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from core.inside import spare_seconds
from core.test_runner import Rig
from llamafast.engine.pace import Pace

PACE = Pace()


def spare_after(*args, target_itl=0.0, **step):
    return spare_seconds(asdict(Pace(target_itl=target_itl)), *args, **step)


@pytest.mark.parametrize(("seconds", "n_decode", "spare"), [
    (0.06, 8, 0.036),       # 1.6 steps in all
    (1.0, 64, 0.6),
    (0.016, 1, 0.044),      # 60 ms in all
    (0.001, 64, 0.059),
])  # fmt: skip
def test_who_decodes_sees_no_pause(seconds, n_decode, spare):
    assert spare_after(seconds, n_decode) == pytest.approx(spare)


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
