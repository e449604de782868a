"""Every end of a sequence is told as what it is, however its last token came."""

from __future__ import annotations

import threading

import pytest

from core.test_masks import TOKENS, constrained, text_of
from core.test_runner import Rig

STOP, LENGTH = 1, 2


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    masking = [threading.Thread(target=rig.runner.masker.run, kwargs={"slow": slow}) for slow in (False, True)]
    for thread in masking:
        thread.start()
    yield rig
    rig.runner.masker.close()
    for thread in masking:
        thread.join()
    rig.close()


@pytest.mark.parametrize("grammar", [{}, {"forced": 64}, {"fast_forward": False}, {"pause": 0.02}])
@pytest.mark.parametrize("n_tokens", [1, 5, len(TOKENS)])
def test_a_complete_text_stops_by_itself_also_at_its_limit(rig, grammar, n_tokens):
    text = text_of(rig, TOKENS[:n_tokens])
    sequence, _ = constrained(rig, TOKENS[:n_tokens], max_tokens=n_tokens, **grammar)
    assert rig.run(sequence) == {1: (text, n_tokens, STOP)}
    if n_tokens > 1:
        sequence, _ = constrained(rig, TOKENS[:n_tokens], max_tokens=n_tokens - 1, **grammar)
        assert rig.run(sequence) == {1: (text_of(rig, TOKENS[: n_tokens - 1]), n_tokens - 1, LENGTH)}


def test_no_mask_is_computed_behind_the_last_token(rig):
    """Also a grammar that fails there has given its whole text."""
    for fails_at in (None, 3):
        sequence, matcher = constrained(rig, TOKENS, max_tokens=3, fails_at=fails_at)
        asked = []
        matcher.unsafe_compute_mask_ptr = lambda *to, ask=matcher.unsafe_compute_mask_ptr, at=asked: at.append(ask(*to))
        assert rig.run(sequence) == {1: (text_of(rig, TOKENS[:3]), 3, LENGTH)}
        assert len(asked) == 3


def test_who_is_removed_before_its_grammar_has_told_ends_all_the_same(rig):
    sequence, _ = constrained(rig, TOKENS[:3], max_tokens=3, pause=0.02)
    rig.runner.add(sequence)
    while sequence.n_tokens < sequence.n_max:
        rig.runner.run(1)
    rig.runner.remove(sequence)
    before = rig.collect()[1]
    text, n_tokens, finish = rig.run(sequence)[1]
    assert (before[0] + text, before[1] + n_tokens, finish) == (text_of(rig, TOKENS[:3]), 3, STOP)
