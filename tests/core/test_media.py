"""Rows of media among tokens: computed as libmtmd's helper computes them, shared and kept like any other prefix."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
import pytest
from support.media_prompts import media_prompt, pixels, projector, tone
from support.mtmd_oracle import oracle_logits

from core.test_runner import Rig
from llamafast._core.spans import Span
from llamafast._core.step import FINISHED, PAUSED, SAVE_DUE
from llamafast.chat.prompt.media import row_ids
from recipes import tiny_gguf, tiny_mmproj

PICTURE, OTHER, LARGE = pixels(96, 80, 1), pixels(96, 80, 5), pixels(200, 160, 2)
PAIR = np.dtype([("token", "i4"), ("logprob", "f4")])
KINDS = {
    "attention": ("tiny-qwen3vl", "mmproj-qwen3vl-64", [PICTURE, LARGE]),
    "wide rows": ("tiny-qwen3vl-deepstack", "mmproj-qwen3vl-64-deepstack", [PICTURE, LARGE]),
    "hybrid": ("tiny-qwen35", "mmproj-qwen3vl-64", [PICTURE, LARGE]),
    "hybrid hears": ("tiny-qwen35", "mmproj-qwen3vl-ultravox-64", [PICTURE, tone(40, 440)]),
    "not causal": ("tiny-llama", "mmproj-gemma3-64", [LARGE, PICTURE]),
    "sliding windows": ("tiny-gemma3-swa", "mmproj-gemma3-64", [LARGE, PICTURE]),
    "slices": ("tiny-llama", "mmproj-idefics3-64", [LARGE]),
    "windows of sound": ("tiny-llama", "mmproj-ultravox-64", [tone(40, 300)]),
    "many rows": ("tiny-llama", "mmproj-qwen2a-64", [tone(31, 300)]),
}


class MediaRig(Rig):
    """A Runner and an encoder of media in one process."""

    def __init__(self, model, mmproj, **settings):
        super().__init__(tiny_gguf.build(model), n_ctx=4096, **settings)
        self.projector = projector(self.model, tiny_mmproj.build(mmproj))

    def with_media(self, text, media, *, max_tokens=1, give=True, **options):
        """A sequence, with its rows where they are to be given before it runs."""
        prompt = media_prompt(self.vocab, self.projector, text, media)
        sequence = self.sequence(prompt.tokens, max_tokens=max_tokens, top_logprobs=511, spans=prompt.spans, **options)
        if give:
            self.give(sequence, prompt)
        return sequence, prompt

    def give(self, sequence, prompt):
        for i, rows in enumerate(prompt.rows):
            self.runner.give_rows(sequence, i, rows)

    def first_logprobs(self, *sequences):
        """Of the first token of each, over the vocabulary, by tag."""
        while self.runner.n_running:
            assert self.runner.run(1000) in (FINISHED, PAUSED, SAVE_DUE)
            self.runner.check()
            self.tidy()
        found = {}
        for tag, _, _, _, _, logprobs, *_ in self.outbox.drain():
            if logprobs and tag not in found:
                pairs = np.frombuffer(logprobs[1], PAIR)[1:512]
                row = np.full(self.vocab.n_tokens, -np.inf)
                row[pairs["token"]] = pairs["logprob"]
                found[tag] = row
        return found

    def alone(self, sequence):
        self.runner.add(sequence)
        return self.first_logprobs()[sequence.tag]


def far(a, b):
    """The largest difference where both know a token."""
    both = np.isfinite(a) & np.isfinite(b)
    assert both.sum() >= len(a) - 2
    return float(abs(a[both] - b[both]).max())


def text_of(media):
    return "hello there <__media__> and ".join([""] * (len(media) + 1)) + "what is it"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    model, mmproj, media = KINDS[request.param]
    logits = oracle_logits(tiny_gguf.build(model), tiny_mmproj.build(mmproj), text_of(media), media)
    return model, mmproj, media, logits - np.logaddexp.reduce(logits.astype(np.float64))


@pytest.mark.parametrize("n_batch", [64, 1024])
def test_rows_are_computed_as_libmtmd_would(kind, n_batch):
    """Also where a batch is shorter than a span."""
    model, mmproj, media, expected = kind
    rig = MediaRig(model, mmproj, n_batch=n_batch, bare=True)
    sequence, _ = rig.with_media(text_of(media), media)
    assert far(rig.alone(sequence), expected) < 1e-5
    rig.close()


def test_rows_are_computed_as_libmtmd_would_by_our_kernels_too(kind):
    model, mmproj, media, expected = kind
    rig = MediaRig(model, mmproj, n_batch=256)
    sequence, _ = rig.with_media(text_of(media), media)
    assert far(rig.alone(sequence), expected) < 1e-3
    rig.close()


def test_another_picture_and_another_order_give_other_logits():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64")
    one = rig.alone(rig.with_media(text_of([PICTURE]), [PICTURE])[0])
    assert far(one, rig.alone(rig.with_media(text_of([OTHER]), [OTHER])[0])) > 0.1
    both = rig.alone(rig.with_media(text_of([PICTURE, OTHER]), [PICTURE, OTHER])[0])
    assert far(both, rig.alone(rig.with_media(text_of([OTHER, PICTURE]), [OTHER, PICTURE])[0])) > 0.1
    rig.close()


def test_running_sequences_share_media(kind):
    """Who comes second takes what the first computes and needs no rows of its own."""
    model, mmproj, media, _ = kind
    rig = MediaRig(model, mmproj, n_batch=1024)
    expected = rig.alone(rig.with_media(text_of(media), media, tag=3)[0])
    first, prompt = rig.with_media(text_of(media), media, tag=1)
    second = rig.sequence(prompt.tokens, tag=2, max_tokens=1, top_logprobs=511, spans=prompt.spans)
    rig.runner.add(first)
    rig.runner.add(second)
    found = rig.first_logprobs()
    assert far(found[1], expected) < 1e-4
    assert far(found[2], expected) < 1e-4
    assert rig.runner.counts()["prefix_hits"] >= len(prompt.tokens) - 1
    rig.close()


def test_a_sequence_waits_for_its_rows_and_holds_nobody_up():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=1024)
    expected = rig.alone(rig.with_media(text_of([PICTURE]), [PICTURE])[0])
    sequence, prompt = rig.with_media(text_of([PICTURE]), [PICTURE], tag=2, give=False)
    other = rig.sequence([70, 71, 72], tag=3, max_tokens=5)
    rig.runner.add(sequence)
    assert rig.runner.run(100) == PAUSED  # what a row is computed beside moves its last bits
    rig.runner.add(other)
    while not other.finished:
        assert rig.runner.run(1) in (PAUSED, FINISHED)
    assert sequence.awaited == 0
    rig.tidy()
    assert rig.runner.run(100) == PAUSED  # nobody has a row to compute
    assert sequence.awaited == 0
    with pytest.raises(ValueError, match="floats for span 0"):
        rig.runner.give_rows(sequence, 0, prompt.rows[0][1:])
    rig.give(sequence, prompt)
    assert sequence.awaited is None
    assert far(rig.first_logprobs()[2], expected) < 1e-5
    rig.close()


def test_streams_go_on_beside_long_media():
    """Between any two of their steps there is at most one of rows."""
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=1024)
    stream = rig.sequence([70, 71, 72], tag=1, max_tokens=300)
    rig.runner.add(stream)
    while stream.n_tokens < 5:
        rig.runner.run(1)
    sequence, prompt = rig.with_media(text_of([pixels(800, 800, 3)]), [pixels(800, 800, 3)], tag=2)
    rig.runner.add(sequence)
    n_before, longest = stream.n_tokens, 0
    while sequence.n_past < len(prompt.tokens) - 1:
        before = rig.runner.counts()["media_rows"]
        n_tokens = stream.n_tokens
        rig.runner.run(1)
        if rig.runner.counts()["media_rows"] > before:
            longest += 1
            assert longest == 1
        elif stream.n_tokens > n_tokens:
            longest = 0
    assert stream.n_tokens > n_before
    rig.runner.clear()
    rig.close()


def parts_of(rig, sequence, edges):
    """What save gives of a sequence between each two of ``edges``."""
    return [(rig.runner.save(sequence, start, stop), start, stop) for start, stop in pairwise(edges)]


@pytest.mark.parametrize("name", ["attention", "not causal", "sliding windows", "slices", "windows of sound"])
def test_media_are_saved_and_restored_in_parts(name):
    model, mmproj, media = KINDS[name]
    rig = MediaRig(model, mmproj, n_batch=1024)
    # a sliding window cannot be cut beyond its width
    media = [PICTURE, OTHER] if name == "sliding windows" else media
    expected = rig.alone(rig.with_media(text_of(media), media)[0])
    first, prompt = rig.with_media(text_of(media), media, tag=2, max_tokens=50)
    rig.runner.add(first)
    while first.n_past < len(prompt.tokens):
        rig.runner.run(1)
    at = [i for i in range(1, len(prompt.tokens) - 1) if first.cut_before(i) == i and prompt.tokens[i] < -1]
    edges = [0, *at, len(prompt.tokens) - 2]
    parts = parts_of(rig, first, edges)
    rig.runner.clear()
    rig.outbox.drain()
    second = rig.sequence(prompt.tokens, tag=3, max_tokens=1, top_logprobs=511, spans=prompt.spans)
    rig.runner.add(second, edges[-1])
    for saved, start, stop in parts:
        assert rig.runner.restore(second, saved, start, stop)
        rig.runner.check()
    assert far(rig.first_logprobs()[3], expected) < 1e-5
    rig.close()


def test_a_hybrid_goes_on_from_a_state_behind_media():
    rig = MediaRig("tiny-qwen35", "mmproj-qwen3vl-64", n_batch=1024)
    media = [PICTURE, LARGE]
    expected = rig.alone(rig.with_media(text_of(media), media)[0])
    first, prompt = rig.with_media(text_of(media), media, tag=2)
    end = max(i for i, token in enumerate(prompt.tokens) if token < -1) + 1
    first.save_at = end
    rig.runner.add(first)
    while rig.runner.run(1) != SAVE_DUE:
        pass
    assert first.n_past == end
    saved = rig.runner.save(first, 0, end)
    rig.runner.clear()
    rig.outbox.drain()
    second = rig.sequence(prompt.tokens, tag=3, max_tokens=1, top_logprobs=511, spans=prompt.spans)
    rig.runner.add(second, end)
    assert rig.runner.restore(second, saved, 0, end)
    assert far(rig.first_logprobs()[3], expected) < 1e-5
    rig.close()


def test_a_preempted_sequence_computes_its_media_again():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=1024)
    expected = rig.alone(rig.with_media(text_of([LARGE]), [LARGE])[0])
    sequence, prompt = rig.with_media(text_of([LARGE]), [LARGE], tag=2)
    rig.runner.add(sequence)
    rig.runner.run(2)
    assert sequence.n_past
    sequence.drop_rows()
    rig.runner.remove(sequence)
    rig.runner.add(sequence)
    rig.give(sequence, prompt)
    assert far(rig.first_logprobs()[2], expected) < 1e-5
    rig.close()


def test_penalties_and_dry_pass_over_media():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64", n_batch=1024)
    sampling = {
        "repetition_penalty": 1.3, "presence_penalty": 0.5, "dry_multiplier": 1.0, "penalty_last_n": -1,
        "dry_penalty_last_n": -1, "temperature": 1.0, "seed": 3,
    }  # fmt: skip
    # sent twice a picture is a repetition
    sequence, _ = rig.with_media(text_of([PICTURE, PICTURE]), [PICTURE, PICTURE], max_tokens=40, sampling=sampling)
    rig.runner.add(sequence)
    while rig.runner.n_running:
        assert rig.runner.run(1000) in (FINISHED, PAUSED)
        rig.tidy()
    assert all(token >= 0 for token in sequence.tokens()[sequence.n_prompt :])
    rig.close()


@pytest.fixture(scope="module")
def rig():
    rig = MediaRig("tiny-qwen3vl", "mmproj-qwen3vl-64")
    yield rig
    rig.close()


def ids(n_rows):
    return row_ids(bytes(32), 0, n_rows)


@pytest.mark.parametrize(
    ("prompt", "spans", "fault"),
    [
        ([1, *ids(6), 2], [], "outside the vocabulary"),
        ([1, *ids(6), *ids(5), 2], [(1, 6)], "outside spans"),
        ([1, *ids(6), 2], [(1, 5)], "outside spans"),
        ([1, *ids(6), 2], [(0, 6)], "in a span"),
        ([1, *ids(6), 2], [(1, 7)], "end with the prompt"),
        ([1, *ids(6)], [(1, 6)], "end with the prompt"),
        ([1, *ids(6), 2], [(1, 6), (3, 2)], "overlap"),
        ([1, *ids(6), *ids(6), 2], [(1, 12)], "in a span"),
        ([1, *ids(6)[1:], 2], [(1, 5)], "in a span"),
        ([-1, 2], [], "outside the vocabulary"),
        ([-1, *ids(6), 2], [(1, 6)], "outside the vocabulary"),
    ],
)
def test_ids_and_spans_have_to_agree(rig, prompt, spans, fault):
    with pytest.raises(ValueError, match=fault):
        rig.sequence(prompt, spans=tuple(Span(row, n, n, True) for row, n in spans))


@pytest.mark.parametrize(
    "span",
    [
        (-1, 2, 2, True),
        (0, 0, 1, True),
        (0, 2, 0, True),
        (2**31 - 2, 2, 2, True),
        (0, 2, 3, True),
        (0, 2, 1, True, b"x"),
    ],
)
def test_spans_that_cannot_be(span):
    with pytest.raises(ValueError, match=r"span|positions"):
        Span(*span)


def test_times_of_a_span_rise_and_stay_within_it():
    def planes(*times):
        return array("i", [*times, *[0] * (3 * len(times))]).tobytes()

    Span(0, 3, 2, True, planes(0, 0, 1))
    for times in ((0, 1, 0), (0, 0, 2), (-1, 0, 0)):
        with pytest.raises(ValueError, match="times of rows"):
            Span(0, 3, 2, True, planes(*times))


def test_a_scored_prompt_has_no_media(rig):
    with pytest.raises(ValueError, match="not scored"):
        rig.sequence([1, *ids(6), 2], spans=(Span(1, 6, 6, True),), top_logprobs=0, score_prompt=True)


def test_cuts_lie_at_the_edges_of_spans(rig):
    prompt = [1, 2, *ids(6), *ids(5), 3, 4]
    sequence = rig.sequence(prompt, spans=(Span(2, 6, 6, True), Span(8, 5, 5, True)))
    edges = {0, 1, 2, 8, 13, 14, 15}
    for n in range(len(prompt) + 1):
        assert sequence.cut_before(n) == max(edge for edge in edges if edge <= n)
        assert sequence.cut_behind(n) == min(edge for edge in edges if edge >= n)
    assert [sequence.next_span(n) for n in (0, 2, 7, 8, 12, 13)] == [0, 0, 0, 1, 1, 2]
