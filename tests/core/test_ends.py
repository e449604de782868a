"""Every end of a sequence is told as what it is, however its last token came, and counted once."""

from __future__ import annotations

import pytest
from support.masker_lanes import masking

from core.test_masks import TOKENS, constrained, text_of
from core.test_runner import Rig

STOP, LENGTH, REFUSED = 1, 2, 3
# What every end adds a value to.
OF_ENDS = (
    "end_to_end_seconds", "generation_seconds", "inference_seconds", "request_generated_tokens", "request_max_tokens",
    "queue_seconds", "prefill_seconds", "request_prompt_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    with masking(rig.runner.masker):
        yield rig
    rig.close()


def counts(rig):
    """How many values each histogram has, and how many sequences ended by each reason."""
    told = {name: sum(counts) for name, (_, counts, _) in rig.runner.histograms().items()}
    return told | {name: n for name, n in rig.runner.counts().items() if name.startswith("finished_")}


def grown(rig, *sequences):
    """What the sequences say, and what of ``counts`` they add."""
    before = counts(rig)
    said = rig.run(*sequences)
    return said, {name: n - before[name] for name, n in counts(rig).items() if n != before[name]}


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


@pytest.mark.parametrize("n_tokens", [1, 6])
@pytest.mark.parametrize("fast_forward", [False, True])
def test_an_end_without_a_token_counts(rig, n_tokens, fast_forward):
    sequence, _ = constrained(rig, TOKENS[:n_tokens], fast_forward=fast_forward)
    said, more = grown(rig, sequence)
    assert said[1][1:] == (n_tokens, STOP)
    assert [more.get(name) for name in (*OF_ENDS, "first_token_seconds", "finished_stop")] == [1] * 10
    assert "finished_length" not in more


def test_a_refusal_counts(rig):
    for fails_at in (0, 3):
        sequence, _ = constrained(rig, TOKENS, fails_at=fails_at)
        said, more = grown(rig, sequence)
        assert said[1][1:] == (fails_at, REFUSED)
        assert [more.get(name) for name in (*OF_ENDS, "finished_refused")] == [1] * 9
        assert more.get("first_token_seconds", 0) == bool(fails_at)
        assert more.get("inter_token_seconds", 0) == max(0, fails_at - 1)


def test_a_prompt_alone_counts(rig):
    said, more = grown(rig, rig.sequence([40, 41, 42], max_tokens=0, top_logprobs=0, score_prompt=True))
    assert said[1][1:] == (0, LENGTH)
    assert [more.get(name) for name in (*OF_ENDS, "finished_length")] == [1] * 9
    assert "first_token_seconds" not in more
    assert rig.runner.histograms()["request_max_tokens"][1][0] > 0


def test_who_is_halted_does_not_count(rig):
    sequence = rig.sequence([40, 41, 42], max_tokens=20)
    before = counts(rig)
    rig.runner.add(sequence)
    rig.runner.run(3)
    rig.runner.halt(sequence)
    rig.runner.run(3)
    rig.runner.remove(sequence)
    assert counts(rig)["end_to_end_seconds"] == before["end_to_end_seconds"]
    rig.collect()


def test_the_parts_of_a_time_are_its_whole(rig):
    sequence, _ = constrained(rig, TOKENS[:4], pause=0.01)
    before = {name: total for name, (_, _, total) in rig.runner.histograms().items()}
    rig.run(sequence, rig.sequence([50, 51], tag=2, max_tokens=0, top_logprobs=0, score_prompt=True))
    more = {name: total - before[name] for name, (_, _, total) in rig.runner.histograms().items()}
    assert more["prefill_seconds"] + more["generation_seconds"] == pytest.approx(more["inference_seconds"])
    assert more["queue_seconds"] + more["inference_seconds"] == pytest.approx(more["end_to_end_seconds"])
