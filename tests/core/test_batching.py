"""How long prompts may be computed between two steps that decode, in seconds."""

from __future__ import annotations

import pytest

from llamafast._core.batching import spare_seconds

OLD = 60.0


@pytest.mark.parametrize(("seconds", "n_decode", "n_waiting", "spare"), [
    (0.06, 8, 8, 0.5),      # as many wait as decode
    (0.06, 8, 1, 0.12),     # two steps for an eighth
    (0.06, 16, 1, 0.06),
    (0.06, 64, 1, 0.06),
    (0.06, 8, 4, 0.24),     # with the step 0.3 s
    (1.0, 64, 8, 0.5),      # half a long step
    (0.001, 64, 1, 0.049),  # with a quick step 50 ms
])  # fmt: skip
def test_who_has_been_decoding_for_long_is_held_up_little(seconds, n_decode, n_waiting, spare):
    assert spare_seconds(seconds, n_decode, n_waiting, OLD) == pytest.approx(spare)


def test_what_prompt_rows_of_the_step_took_has_gone_already():
    """Of 0.3 s for both, and of 1.5 times what 4 decode rows take alone; a tenth of the step is left in any case."""
    assert spare_seconds(0.2, 4, 1, OLD, n_prefill=10, per_row=0.014) == pytest.approx(0.1)
    assert spare_seconds(1.0, 4, 1, OLD, n_prefill=6, per_row=0.1) == pytest.approx(0.1)
    assert spare_seconds(0.5, 4, 1, OLD, n_prefill=1, per_row=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("n_waiting", [1, 8])
def test_who_has_just_begun_waits_for_those_who_came_with_it(n_waiting):
    assert spare_seconds(0.03, 4, n_waiting, 0.0) == 2.0
    assert spare_seconds(0.03, 4, n_waiting, 0.75) == 1.25
    assert spare_seconds(0.03, 4, n_waiting, 2.0) == spare_seconds(0.03, 4, n_waiting, OLD)


def test_prompts_have_the_time_where_nobody_decodes():
    assert spare_seconds(0.3, 0, 1, 0.0) == 0.3


def test_a_target_leaves_what_the_step_did_not_take_and_never_nothing():
    assert spare_seconds(0.03, 8, 8, 0.0, target_itl=0.05) == pytest.approx(0.02)
    assert spare_seconds(0.08, 8, 8, 0.0, target_itl=0.05) == pytest.approx(0.008)
