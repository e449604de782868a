"""The queue of long prompts over a fake Prefiller whose memory is plain lists, and within an engine."""

from __future__ import annotations

import asyncio
import logging
from array import array
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import pytest

from engine.test_engine import collect, config, plan
from llamafast._core.states import State
from llamafast.config import SchedulerConfig
from llamafast.engine import load
from llamafast.engine.cache import Part, PrefixCache
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.load import load_engine
from llamafast.engine.memory import resident_bytes
from llamafast.engine.pace import Pace
from llamafast.engine.prefill import PrefillQueue
from llamafast.errors import ConfigError, EngineUnavailable


@dataclass(eq=False)
class FakeSequence:
    prompt: list
    salt: bytes = b""
    scheduled: bool = False

    def schedule(self):
        self.scheduled = True

    def tokens(self):
        return array("i", self.prompt)


@dataclass
class FakePrefiller:
    """Computes a batch when ``compute`` is called; a saved state is the tokens themselves."""

    n_ctx: int = 4000
    n_seq_max: int = 4
    n_batch: int = 512
    code: int = 0
    seconds: float = 0.0
    working: bool = False
    takes: bool = True
    aborted: int = 0
    memory: dict = field(default_factory=dict)
    batch: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    computed: list = field(default_factory=list)

    def add(self, seq_id, tokens, start, stop, output):
        assert not self.working
        assert output == (stop == len(tokens))
        assert len(self.memory.get(seq_id, [])) == start
        assert sum(len(rows) for _, rows in self.batch) + stop - start <= self.n_batch
        self.batch.append((seq_id, list(tokens[start:stop])))
        return sum(len(rows) for _, rows in self.batch) - 1

    def begin(self):
        assert self.batch
        self.working = True
        self.sizes.append([len(rows) for _, rows in self.batch])

    def compute(self, code=0, row_seconds=0.001):
        assert self.working
        self.working, self.code = False, code
        self.seconds = row_seconds * sum(len(rows) for _, rows in self.batch)
        self.computed = [token for _, rows in self.batch for token in rows]
        for seq_id, rows in self.batch if code == 0 else ():
            self.memory.setdefault(seq_id, []).extend(rows)

    def settle(self):
        self.batch.clear()

    def abort(self):
        self.compute(code=2)
        self.aborted += 1

    def restore(self, seq_id, saved, start, stop):
        assert not self.working
        assert len(self.memory.get(seq_id, [])) == start
        if self.takes:
            self.memory.setdefault(seq_id, []).extend(array("i", saved)[: stop - start])
        return self.takes

    def save(self, seq_id, start, stop):
        assert not self.working
        return array("i", self.memory[seq_id][start:stop]).tobytes()

    def cut(self, seq_id, n_tokens):
        assert not self.working
        self.memory[seq_id] = self.memory.get(seq_id, [])[:n_tokens]


@pytest.fixture
def prefiller():
    return FakePrefiller()


@pytest.fixture
def queue(prefiller):
    return PrefillQueue(prefiller, PrefixCache(10**7), Pace())


def text(n, seed=0):
    return [(7 * k + seed) % 300 for k in range(n)]


def found(prompt, *ranges):
    """Parts [start, stop) of a prompt whose states may be longer: [start, end)."""
    return [Part(State(array("i", prompt[a:b]).tobytes(), None, a, b, spares=0, n_bytes=0), a, c) for a, b, c in ranges]


def nobody(sequence):
    """Nobody waits for a part of a sequence."""
    return len(sequence.prompt)


def drain(queue, prefiller, code=0, awaited=nobody):
    """Compute until nothing is left: who is done, in order, and how many of its tokens there are."""
    done, parts_of = [], {}
    while queue.has_work:
        for sequence, parts, n_tokens, row in queue.advance(awaited):
            assert sequence.scheduled
            assert parts or n_tokens >= 0
            while parts:
                saved = parts.saved
                parts_of.setdefault(sequence, []).append((parts.take(), saved))
            if n_tokens < 0:
                assert row < 0
                continue
            # the row of the last token in the batch before
            assert (row >= 0) == (n_tokens == len(sequence.prompt))
            assert row < 0 or prefiller.computed[row] == sequence.prompt[-1]
            for (before, _), (part, _) in pairwise(parts_of.get(sequence, [])):
                assert before.stop == part.start
            for part, saved in parts_of.get(sequence, []):
                assert list(array("i", saved)[: part.stop - part.start]) == sequence.prompt[part.start : part.stop]
            done.append((sequence, n_tokens))
        if prefiller.working:
            prefiller.compute(code)
    if not queue.has_jobs:
        assert not any(prefiller.memory.values())
        assert not queue._cache._held
    return done


def test_prompts_are_computed_to_their_last_tokens(queue, prefiller):
    sequences = [FakeSequence(text(n, n)) for n in (1500, 60, 60, 700)]
    for sequence in sequences:
        queue.add(sequence, [])
    done = drain(queue, prefiller)
    assert [n for _, n in done] == [60, 60, 700, 1500]
    assert [sequence for sequence, _ in done] == [sequences[k] for k in (1, 2, 3, 0)]


def test_short_prompts_pass_a_long_one_which_goes_on_all_the_same(queue, prefiller):
    long = FakeSequence(text(3000))
    queue.add(long, [])
    done = []
    for k in range(1000):
        queue.add(FakeSequence(text(101, k)), [])
        done += [news.sequence for news in queue.advance(nobody) if news.n_tokens >= 0]
        prefiller.compute(row_seconds=0.01)
        if long in done:
            break
    # batches of about 64 rows, every other one of the long prompt
    assert 80 < k < 110
    assert len(done) > 30


def test_what_cannot_be_saved_is_left_to_others(queue, prefiller, monkeypatch, caplog):
    sequence, other = FakeSequence(text(200)), FakeSequence(text(200, 5))
    monkeypatch.setattr(queue._cache, "put", lambda *_: (_ for _ in ()).throw(MemoryError))
    queue.add(sequence, [])
    with caplog.at_level(logging.CRITICAL):
        assert drain(queue, prefiller) == [(sequence, 200)]
        monkeypatch.setattr(prefiller, "save", lambda *_: (_ for _ in ()).throw(MemoryError))
        queue.add(other, [])
        assert drain(queue, prefiller) == [(other, 0)]


def test_a_batch_takes_as_many_rows_as_the_time_allows_and_leaves_no_small_rest(queue, prefiller):
    assert not queue.pays(9, 0.01)
    assert queue.pays(10, 0.01)
    queue.add(FakeSequence(text(1000)), [])
    drain(queue, prefiller)
    # the first by the estimate of 10 ms a row, then by what a row took: 1 ms
    assert prefiller.sizes == [[64], [384], [384], [168]]
    prefiller.sizes.clear()
    queue.add(FakeSequence(text(421, 1)), [])
    drain(queue, prefiller)
    assert prefiller.sizes == [[421]]


def test_nothing_pays_that_is_there_already(queue):
    queue.least_seconds = 0
    assert queue.pays(1, 0.0)
    assert not queue.pays(0, 1.0)


def test_a_found_prefix_is_loaded_a_part_at_a_time_and_handed_on(queue, prefiller):
    prompt = text(1000)
    sequence = FakeSequence(prompt)
    queue.add(sequence, found(prompt, (0, 512, 512), (512, 1000, 900)))
    queue.advance(nobody)
    assert not prefiller.working
    queue.advance(nobody)
    assert not prefiller.working
    assert drain(queue, prefiller) == [(sequence, 1000)]
    assert sum(map(sum, prefiller.sizes)) == 100


def test_a_part_that_is_not_taken_is_computed(queue, prefiller):
    prompt = text(300)
    prefiller.takes = False
    sequence = FakeSequence(prompt)
    queue.add(sequence, found(prompt, (0, 100, 100)))
    assert drain(queue, prefiller) == [(sequence, 300)]


def test_what_it_computed_is_kept_and_found(queue, prefiller):
    queue.add(FakeSequence(text(1200)), [])
    drain(queue, prefiller)
    parts = queue._cache.find(array("i", text(1300)), b"", 0)
    assert parts[-1].stop == 1200
    assert len(parts) >= 2


def test_a_failing_batch_hands_on_what_was_saved_before(queue, prefiller):
    sequence, other = FakeSequence(text(1200)), FakeSequence(text(200, 5))
    queue.add(sequence, [])
    queue.advance(nobody)
    while not prefiller.memory or sum(map(len, prefiller.memory.values())) < 600:
        prefiller.compute()
        (news,) = queue.advance(nobody) or [None]
        if news is not None:
            assert (news.sequence, news.n_tokens) == (sequence, -1)
            news.parts.clear()
    queue.add(other, [])
    prefiller.compute(code=-3)
    done = dict(drain(queue, prefiller, code=-3))
    assert 512 <= done[sequence] < 1200
    assert done[other] == 0


def test_what_somebody_waits_for_is_computed_first_and_handed_over_at_once(queue, prefiller):
    """The oldest prompt and one of 150 tokens; of another long one somebody needs the first 70."""
    queue.pays(1, 0.005)
    oldest, short, long = FakeSequence(text(1500)), FakeSequence(text(150, 1)), FakeSequence(text(1500, 2))
    for sequence in (oldest, short, long):
        queue.add(sequence, [])
    news = []
    while not news:
        news = queue.advance(lambda sequence: 70 if sequence is long else len(sequence.prompt))
        prefiller.compute(row_seconds=0.005)
    assert [(one.sequence, one.n_tokens) for one in news] == [(long, -1)]
    assert news[0].parts.first.stop >= 70
    assert len(prefiller.sizes) <= 4


def test_who_comes_later_is_given_what_is_there_already(queue, prefiller):
    """Of a prompt that is not in the next batches somebody wants what is computed and not yet a part."""
    queue.pays(1, 0.005)
    oldest, long = FakeSequence(text(2000)), FakeSequence(text(1500, 2))
    queue.add(oldest, [])
    queue.add(long, [])
    for _ in range(4):
        queue.advance(nobody)
        prefiller.compute(row_seconds=0.005)
    queue.advance(nobody)
    there = len(prefiller.memory[queue._running[1].seq_id])
    assert 0 < there < 512
    prefiller.compute(row_seconds=0.005)
    for _ in range(3):  # batches of short ones and the oldest
        queue.add(FakeSequence(text(60, 7)), [])
    (news,) = [one for one in queue.advance(lambda s: 70 if s is long else len(s.prompt)) if one.sequence is long]
    assert news.parts.first.stop >= 70


def test_a_batch_of_which_nobody_wants_anything_is_aborted(queue, prefiller):
    first, second = FakeSequence(text(300)), FakeSequence(text(60, 5))
    queue.pays(1, 0.001)
    queue.add(first, [])
    queue.add(second, [])
    queue.advance(nobody)
    assert len(prefiller.batch) == 2
    queue.drop(first)
    assert (prefiller.working, prefiller.aborted) == (True, 0)
    queue.drop(second)
    assert (prefiller.working, prefiller.aborted) == (False, 1)
    third = FakeSequence(text(60, 9))
    queue.add(third, [])
    assert drain(queue, prefiller) == [(third, 60)]


def test_many_short_prompts_never_overfill_a_batch(queue, prefiller):
    queue.pays(1, 0.0008)
    sequences = [FakeSequence(text(70 + 9 * k, k)) for k in range(30)]
    for sequence in sequences:
        queue.add(sequence, [])
    assert {sequence for sequence, _ in drain(queue, prefiller)} == set(sequences)


def test_who_is_dropped_leaves_with_its_batch(queue, prefiller):
    waiting, running, other = (FakeSequence(text(500, k)) for k in range(3))
    queue.add(running, [])
    queue.add(other, [])
    queue.advance(nobody)
    queue.add(waiting, [])
    queue.drop(running)
    queue.drop(waiting)
    assert prefiller.aborted == 1
    assert drain(queue, prefiller) == [(other, 500)]
    queue.add(running, [])
    queue.advance(nobody)
    queue.clear()
    assert drain(queue, prefiller) == []
    assert not queue.has_work


def test_prompts_wait_for_cells_and_sequence_ids(queue, prefiller):
    sequences = [FakeSequence(text(1900, k)) for k in range(3)] + [FakeSequence(text(100, k)) for k in range(9)]
    for sequence in sequences:
        queue.add(sequence, [])
    most = 0
    done = []
    while queue.has_work:
        done += [news.sequence for news in queue.advance(nobody) if news.n_tokens >= 0]
        most = max(most, sum(map(len, prefiller.memory.values())))
        if prefiller.working:
            prefiller.compute()
    assert len(done) == len(sequences)
    assert set(done) == set(sequences)
    assert most <= prefiller.n_ctx


async def test_an_engine_decodes_beside_a_long_prompt_and_lets_go_of_it(tiny_model):
    """With hardly any time for prompts: the stream goes on all the while, a cancel and a close end their work."""
    path = tiny_model("tiny-llama")
    limits = SchedulerConfig(target_itl_ms=0.001, disaggregate_prefill=True)
    engine = load_engine(msgspec.structs.replace(config(path, n_ctx=4096), scheduler=limits), path)
    engine._worker.transfer.prefills.least_seconds = 0
    engine.start()
    long = plan(*text(3000, 33), max_tokens=4)
    expected = await collect(engine.submit(long))
    stream = engine.submit(plan(40, max_tokens=3000, ignore_eos=True))
    await anext(stream)
    before = engine.counters()["generated_tokens"]
    given_up, kept = engine.submit(long), engine.submit(long)
    await anext(stream)
    given_up.cancel()
    assert await collect(kept) == expected
    assert engine.counters()["generated_tokens"] - before > 50
    last = engine.submit(plan(*text(3000, 40)))
    await anext(stream)
    stream.cancel()
    async with asyncio.timeout(10):
        await engine.close()
    with pytest.raises(EngineUnavailable):
        await collect(last)


@pytest.mark.parametrize("n_common", [24, 200])
async def test_nobody_waits_for_the_end_of_a_strangers_prompt(tiny_model, n_common):
    """Two prompts begin alike; the short one is answered while the long one is still being computed. With 24 tokens in
    common it computes them itself, with 200 it takes them as soon as they are there."""
    path = tiny_model("tiny-llama")
    limits = SchedulerConfig(target_itl_ms=0.001, disaggregate_prefill=True)
    engine = load_engine(msgspec.structs.replace(config(path, n_ctx=8192), scheduler=limits), path)
    prefills = engine._worker.transfer.prefills
    prefills.pays = lambda n_rows, _: n_rows >= 100
    prefills.least_rows = lambda _: 100
    engine.start()
    beside = engine.submit(plan(40, max_tokens=4000, ignore_eos=True))
    await anext(beside)
    begin = text(n_common, 33)
    expected = await collect(engine.submit(plan(*begin, 40, 41, 42)))
    long = engine.submit(plan(*begin, *text(3000, 90), max_tokens=4))
    while engine.counters()["running"] < 2:
        await asyncio.sleep(0.001)
    short = engine.submit(plan(*begin, 40, 41, 42))
    assert await collect(short) == expected
    assert short.cached_tokens == (n_common if n_common == 200 else 0)
    assert long.first_token_seconds is None
    beside.cancel()
    assert len(await collect(long)) == 1
    await engine.close()


@pytest.mark.parametrize("ram_bytes", [0, 10**8])
@pytest.mark.parametrize("how", ["cancelled", "one token"])
async def test_who_waited_for_a_prompt_whose_owner_leaves_goes_on(tiny_model, monkeypatch, how, ram_bytes):
    """Each of many followers starts again at most once, and what they have in common is not computed for each."""
    path = tiny_model("tiny-llama")
    starts = []
    start = KVTransfer.start
    monkeypatch.setattr(KVTransfer, "start", lambda self, sequence: (starts.append(sequence), start(self, sequence))[1])
    limits = SchedulerConfig(target_itl_ms=0.001, disaggregate_prefill=True)
    settings = config(path, n_ctx=16384, n_seq_max=32, ram_bytes=ram_bytes)
    engine = load_engine(msgspec.structs.replace(settings, scheduler=limits), path)
    engine._worker.transfer.prefills.pays = lambda n_rows, _: n_rows >= 100
    engine._worker.transfer.prefills.least_rows = lambda _: 100
    engine.start()
    begin = text(1000, 33)
    max_tokens = 1 if how == "one token" else 4
    expected = await collect(engine.submit(plan(*text(999, 90), 40, max_tokens=max_tokens)))
    beside = engine.submit(plan(40, max_tokens=6000, ignore_eos=True))
    await anext(beside)
    before = engine.counters()["prompt_tokens"]
    waiting = [engine.submit(plan(*begin, 50 + k, max_tokens=max_tokens)) for k in range(12)]
    stranger = engine.submit(plan(*text(999, 90), 40, max_tokens=max_tokens))
    if how == "cancelled":
        while engine.counters()["running"] < 14:
            await asyncio.sleep(0.001)
        waiting.pop(0).cancel()
    assert await collect(stranger) == expected
    texts = [await collect(generation) for generation in waiting]
    assert len(starts) <= 2 + 2 * 13
    # the prefix twice, or three times where nobody has kept it, and each one's own
    assert engine.counters()["prompt_tokens"] - before <= 4 * 1000 + 13 * 64
    cached = [generation.cached_tokens for generation in waiting]
    assert sum(n >= 1000 for n in cached) >= len(waiting) - 2
    first = 50 + 13 - 1 - len(waiting)
    alone = [engine.submit(plan(*begin, first + k, max_tokens=max_tokens)) for k in range(len(waiting))]
    assert texts == [await collect(generation) for generation in alone]
    beside.cancel()
    await engine.close()


@pytest.mark.parametrize("limit", [{"max_tokens": 1}, {"max_tokens": 60, "stop": ("w",)}, {"max_tokens": 60, "n": 3}])
async def test_answers_are_the_same_whoever_computes_the_prompt(tiny_model, limit):
    """Also those that end with the token chosen from the Prefiller's logits: nothing of them is restored."""
    path = tiny_model("tiny-llama")
    asked = [plan(*text(700, seed), **limit) for seed in (33, 34, 33)]
    answers, counters = [], {}
    for apart in (False, True):
        engine = load_engine(config(path, n_ctx=4096, disaggregate_prefill=apart, ram_bytes=10**8), path)
        if apart:
            engine._worker.transfer.prefills.least_seconds = 0
        engine.start()
        answers.append([await collect(engine.submit(one)) for one in asked])
        async with asyncio.timeout(10):
            while engine.counters()["running"]:
                await asyncio.sleep(0.001)
        counters = engine.counters()
        await engine.close()
    assert answers[0] == answers[1]
    assert counters["completed"] == 3 * limit.get("n", 1)
    assert (counters["failed"], counters["used_cells"], counters["restore_failures"]) == (0, 0, 0)


@pytest.mark.parametrize(("name", "options", "available", "expected"), [
    ("tiny-llama", {}, 10**12, True),
    ("tiny-llama", {}, 1, False),
    ("tiny-llama", {"disaggregate_prefill": True}, 1, True),
    ("tiny-llama", {"disaggregate_prefill": False}, 10**12, False),
    ("tiny-llama", {"prefill_chunk": 40}, 10**12, False),
    ("tiny-llama", {"kv_unified": False}, 10**12, False),
    ("tiny-gemma3-swa", {}, 10**12, False),
    ("tiny-mamba", {}, 10**12, False),
])  # fmt: skip
def test_which_engines_compute_prompts_apart(tiny_model, monkeypatch, name, options, available, expected):
    monkeypatch.setattr(load, "available_bytes", lambda: available)
    monkeypatch.setattr(load, "resident_bytes", iter((0, 100)).__next__)
    path = tiny_model(name)
    engine = load_engine(config(path, **options), path)
    assert (engine._worker.transfer.prefills is not None) == expected


def test_what_cannot_be_computed_apart_is_refused_where_the_config_asks_for_it(tiny_model):
    path = tiny_model("tiny-mamba")
    with pytest.raises(ConfigError, match="disaggregate_prefill"):
        load_engine(config(path, disaggregate_prefill=True), path)


def test_resident_memory_is_read_where_the_system_tells(tmp_path):
    assert resident_bytes() > 10**6
    assert resident_bytes(tmp_path / "missing") == 0
