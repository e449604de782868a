"""Steps on tiny generated models."""

from __future__ import annotations

import os
from array import array

import pytest
from msgspec.structs import asdict

from benchmarks.samplers import sampler_of
from core.inside import n_cached
from llamafast._core.context import Context
from llamafast._core.drafter import Drafter
from llamafast._core.model import Model
from llamafast._core.outbox import Outbox
from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast._core.step import FINISHED, NO_ROOM, PAUSED
from llamafast._core.vocab import Vocab
from llamafast.engine.pace import Pace
from llamafast.engine.types import OutputOptions

CONTROL = ("<|fim_prefix|>", "<|fim_middle|>")


class Rig:
    """A Runner with everything below it. Flash attention is off: then texts do not depend on how steps are cut."""

    def __init__(
        self,
        path,
        *,
        n_ctx=2048,
        n_batch=64,
        n_seq_max=16,
        prefill_chunk=0,
        target_itl=0.0,
        drafts=None,
        pace=None,
        **settings,
    ):
        self.model = Model(str(path), with_heads=settings.pop("with_heads", False), **settings.pop("model", {}))
        self.vocab = Vocab(self.model)
        one = {"n_threads": 1, "n_threads_batch": 1}
        settings = {"n_ubatch": n_batch, "flash_attn_type": 0, "kv_unified": True, **one, **settings}
        self.context = Context(self.model, n_ctx=n_ctx, n_batch=n_batch, n_seq_max=n_seq_max, **settings)
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self.outbox = Outbox(self.write_fd)
        # what steps with decode rows may take, others may too
        seconds = max(target_itl, Pace().prefill_seconds)
        pace = asdict(Pace(prefill_chunk=prefill_chunk, target_itl=target_itl, prefill_seconds=seconds)) | (pace or {})
        self.drafter = None
        if drafts is not None:
            options = {"most": 8, "most_sequences": 64, "looks_up": True, "answers_bytes": 1 << 16} | drafts
            self.drafter = Drafter(self.context, **options)
        self.runner = Runner(self.context, self.vocab, self.outbox, pace=pace, drafter=self.drafter)

    def close(self):
        """Let go of everything: pytest itself holds on to the last test's fixtures."""
        os.close(self.read_fd)
        os.close(self.write_fd)
        vars(self).clear()

    def sequence(self, prompt, tag=1, max_tokens=16, **options):
        sampler = sampler_of(self.vocab.n_tokens, **{"temperature": 0.0, **options.pop("sampling", {})})
        return Sequence(self.vocab, array("i", prompt), sampler, tag=tag, max_tokens=max_tokens, **options)

    def run(self, *sequences):
        """Run to the end; {tag: (text, tokens reported, finish)}."""
        for sequence in sequences:
            self.runner.add(sequence)
        while self.runner.n_running:
            assert self.runner.run(1000) in (FINISHED, PAUSED)
            self.tidy()
        return self.collect()

    def tidy(self):
        finished = self.runner.finished()
        for sequence in finished:
            self.runner.remove(sequence)
        return finished

    def collect(self):
        texts = {}
        for tag, text, n_tokens, _, finish, *_ in self.outbox.drain():
            before = texts.get(tag, ("", 0, 0))
            texts[tag] = (before[0] + text, before[1] + n_tokens, finish)
        return texts


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    yield rig
    rig.close()


def prompts(n, seed=0):
    return [[(seed + 7 * i + 13 * k * (i + 1)) % 300 + 33 for k in range(3 + 11 * i % 90)] for i in range(n)]


def test_each_of_sixteen_gives_the_text_it_gives_alone(rig):
    alone = {}
    for tag, prompt in enumerate(prompts(16)):
        alone |= rig.run(rig.sequence(prompt, tag, max_tokens=20 + tag))
    together = rig.run(*(rig.sequence(prompt, tag, max_tokens=20 + tag) for tag, prompt in enumerate(prompts(16))))
    assert together == alone


def test_a_seeded_sequence_does_not_depend_on_its_neighbours(rig):
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 42}
    alone = rig.run(rig.sequence([40, 41, 42], 7, sampling=sampling, max_tokens=40))
    crowd = [rig.sequence(prompt, 100 + i, sampling={"temperature": 1.0}) for i, prompt in enumerate(prompts(8))]
    together = rig.run(*crowd, rig.sequence([40, 41, 42], 7, sampling=sampling, max_tokens=40))
    assert together[7] == alone[7]


RARE = {"temperature": 1.3, "mirostat": 1, "dry_multiplier": 0.8, "frequency_penalty": 0.4, "seed": 6}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "typical_p": 0.8, "xtc_probability": 0.5}, RARE])
def test_a_removed_sequence_goes_on_where_it_was(rig, sampling):
    expected = rig.run(rig.sequence([50, 60, 70], 1, max_tokens=30, sampling=sampling))
    sequence = rig.sequence([50, 60, 70], 1, max_tokens=30, sampling=sampling)
    rig.runner.add(sequence)
    assert rig.runner.run(10) == PAUSED
    rig.runner.remove(sequence)
    assert rig.runner.n_cells == 0
    before = rig.collect()[1]
    after = rig.run(sequence)[1]
    assert (before[0] + after[0], before[1] + after[1], after[2]) == expected[1]


def test_a_full_memory_is_reported_and_changes_nothing(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), n_ctx=256, n_seq_max=4)
    first, second = rig.sequence([40] * 150, 1, max_tokens=100), rig.sequence([41] * 150, 2, max_tokens=100)
    expected = rig.run(rig.sequence([40] * 150, 1, max_tokens=100))
    rig.runner.add(first)
    rig.runner.add(second)
    assert rig.runner.run(1000) == NO_ROOM
    rig.runner.remove(second)
    text = rig.collect().get(1, ("", 0, 0))
    while not first.finished:
        rig.runner.run(1000)
    rig.tidy()
    rest = rig.collect()[1]
    assert (text[0] + rest[0], text[1] + rest[1], rest[2]) == expected[1]


def test_prompts_in_chunks_beside_decoding_sequences(tiny_model):
    whole, chunked = Rig(tiny_model("tiny-llama")), Rig(tiny_model("tiny-llama"), prefill_chunk=5)
    long = [(5 * k) % 300 + 33 for k in range(200)]
    results = [rig.run(rig.sequence([40], 1, max_tokens=60), rig.sequence(long, 2)) for rig in (whole, chunked)]
    assert results[0] == results[1]
    assert chunked.runner.counts()["rows_max"] <= 64


@pytest.mark.parametrize(("target_itl", "least", "most"), [(1e-9, 1, 12), (100.0, 50, 64)])
def test_prompt_rows_beside_decoding_ones_are_as_many_as_the_time_allows(tiny_model, target_itl, least, most):
    """With hardly any time a prompt still advances by 8 rows a step, rounded up; with much, by full steps."""
    rig = Rig(tiny_model("tiny-llama"), target_itl=target_itl)
    rig.runner.add(rig.sequence([40], 1, max_tokens=400))
    rig.runner.run(20)
    long = rig.sequence([(5 * k) % 300 + 33 for k in range(200)], 2)
    rig.runner.add(long)
    advances, before = [], 0
    while long.n_past < 199:
        rig.runner.run(1)
        advances.append(long.n_past - before)
        before = long.n_past
    del advances[-1]  # what is left over
    assert least <= min(advances)
    assert max(advances) <= most


def test_short_prompts_pass_a_long_one_which_goes_on_all_the_same(tiny_model):
    """Steps of 64 rows: half for the long prompt, the others for whoever needs the fewest."""
    rig = Rig(tiny_model("tiny-llama"), n_seq_max=4)
    long = rig.sequence([(5 * k) % 300 + 33 for k in range(500)], 1)
    rig.runner.add(long)
    rig.runner.run(1)
    before = long.n_past
    assert before == 64
    middle, short = (rig.sequence([tag] * n, tag, max_tokens=1) for tag, n in ((40, 90), (41, 20)))
    rig.runner.add(middle)
    rig.runner.add(short)
    rig.runner.run(1)
    assert (long.n_past - before, middle.n_past, short.finished) == (32, 12, True)
    rig.tidy()
    for _ in range(3):
        rig.runner.run(1)
    assert (long.n_past, middle.finished) == (64 + 3 * 32 + 64 - 14, True)


def test_the_oldest_prompt_goes_on_however_small_chunks_are(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), n_seq_max=4, prefill_chunk=1)
    rig.runner.add(rig.sequence([40], 1, max_tokens=400))
    rig.runner.run(5)
    long, short = rig.sequence([(5 * k) % 300 + 33 for k in range(100)], 2), rig.sequence([41] * 20, 3)
    rig.runner.add(long)
    rig.runner.add(short)
    rig.runner.run(10)
    assert long.n_past >= 10


def test_a_prefix_that_somebody_waits_for_is_computed_like_a_prompt_of_that_length(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), n_seq_max=8)
    first, long = (rig.sequence([(seed * k) % 300 + 33 for k in range(500)], seed) for seed in (5, 7))
    other = rig.sequence([40] * 200, 3)
    follower = rig.sequence([*long.tokens()[:30], 40], 4, max_tokens=1)
    for sequence in (first, other, long, follower):
        rig.runner.add(sequence)
    rig.runner.run(1)
    assert (first.n_past, other.n_past, long.n_past) == (32, 0, 32)
    rig.runner.run(1)
    assert (follower.finished, n_cached(follower)) == (True, 30)


def test_fewer_rows_than_sequences_are_refused(tiny_model):
    with pytest.raises(ValueError, match="n_seq_max"):
        Rig(tiny_model("tiny-llama"), n_batch=3)


def test_stop_strings_across_tokens_and_length(rig):
    full, n_tokens, finish = rig.run(rig.sequence([40, 50], 1, max_tokens=24))[1]
    assert (n_tokens, finish) == (24, 2)
    stop = full[5:9]
    text, _, finish = rig.run(rig.sequence([40, 50], 1, max_tokens=24, stops=(stop.encode(),)))[1]
    assert (text, finish) == (full[: full.index(stop)], 1)


def test_end_of_generation_leaves_no_text(tiny_model):
    rig = Rig(tiny_model("tiny-scripted"))
    (trigger,) = rig.vocab.tokenize("<|s_text|>", add_special=False, parse_special=True)
    assert rig.run(rig.sequence([trigger], 1))[1] == ("Hello there, this reply is fixed.", 9, 1)
    text, n_tokens, finish = rig.run(rig.sequence([trigger], 1, max_tokens=14, ignore_eos=True))[1]
    assert text.startswith("Hello there, this reply is fixed.")
    assert "<|im_end|>" not in text
    assert (n_tokens, finish) == (14, 2)


@pytest.mark.parametrize("prompt", [[], [-1], [512], [2**31 - 1]])
def test_bad_prompts_are_refused(rig, prompt):
    with pytest.raises(ValueError, match=r"prompt|vocabulary"):
        rig.sequence(prompt)


def test_options_are_those_that_a_request_has(rig):
    rig.sequence([40], **OutputOptions(min_tokens=3, keep_stop=True, ignore_eos=True).output_options())
    with pytest.raises(TypeError, match="no option 'max_stops'"):
        rig.sequence([40], min_tokens=3, max_stops=1)
    with pytest.raises(OverflowError):
        rig.sequence([40], min_tokens=2**31)


def test_there_are_only_so_many_sequence_ids(rig):
    *sequences, last = (rig.sequence([40], tag) for tag in range(17))
    for sequence in sequences:
        rig.runner.add(sequence)
    with pytest.raises(IndexError):
        rig.runner.add(last)
    rig.runner.clear()
    assert (rig.runner.n_running, rig.runner.n_free) == (0, 16)
    assert rig.run(last)[16][2] == 2


def test_one_wake_up_for_all_that_is_unread(rig):
    os.read(rig.read_fd, 4096)
    rig.run(*(rig.sequence([40], tag) for tag in range(4)))
    for tag in range(4):
        rig.runner.add(rig.sequence([40], tag, max_tokens=4))
    rig.runner.run(3)
    assert os.read(rig.read_fd, 4096) == b"\0\0"  # one before run() drained, one since
    rig.runner.clear()
    rig.collect()


def test_finished_sequences_wait_to_be_removed(rig):
    sequence = rig.sequence([40], 1, max_tokens=3)
    rig.runner.add(sequence)
    assert rig.runner.run(100) == FINISHED
    assert rig.runner.run(100) == PAUSED
    assert rig.tidy() == [sequence]
    assert sequence.n_tokens == 4
    rig.collect()


def test_counters(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    rig.run(rig.sequence([40] * 10, 1, max_tokens=5))
    counts = rig.runner.counts()
    assert (counts["prompt_tokens"], counts["generated_tokens"], counts["rows"]) == (10, 5, 14)
    assert counts["decode_seconds"] <= counts["step_seconds"]
    assert rig.runner.since_last_step() < 60


def test_only_preserved_control_tokens_leave_text(rig):
    shown, hidden = (rig.vocab.tokenize(mark, add_special=False, parse_special=True)[0] for mark in CONTROL)
    for token, text in ((shown, CONTROL[0] * 3), (hidden, "")):
        sequence = rig.sequence(
            [33, 34], max_tokens=3, preserved=array("i", [shown]), sampling={"logit_bias": ((token, 1000.0),)}
        )
        assert rig.run(sequence)[1][:2] == (text, 3)
