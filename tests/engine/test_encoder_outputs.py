"""Whoever fails or idles beside rows of media: it fails alone, wants nothing any more, and nobody is passed over."""

from __future__ import annotations

import asyncio
from array import array

import pytest
from core.test_runner import Rig
from support.engines import config
from support.fake_encoder import FakeEncoder, FakeEncoding, fake_medium

from engine.test_media import answer, media_engine, media_plan
from engine.test_worker import FakeRunner, FakeSequence, arrival
from llamafast._core.sequence import PHASE_PREFILLING, PHASE_WAITING
from llamafast._core.spans import Span
from llamafast._core.step import PAUSED
from llamafast.chat.prompt.media import row_ids
from llamafast.engine.cache import PrefixCache
from llamafast.engine.encoder_outputs import EncoderOutputs
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.load import load_engine
from llamafast.engine.media import MediaSpan
from llamafast.engine.pace import Pace
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.worker import Worker
from llamafast.errors import EngineFailure, ProjectorFailure


class SilentEncoder(FakeEncoder):
    """Never done."""

    def encode(self, medium, salt, on_news):
        self.encodings.append(FakeEncoding(self, medium))
        return self.encodings[-1]


async def test_a_span_wider_than_a_step_fails_its_request_alone(tiny_model):
    """A projector may make more rows of a picture than of those that were tried at the start."""
    path = tiny_model("tiny-llama")
    encoder = FakeEncoder(widest_span=4)
    engine = load_engine(config(path, n_batch=64, n_ubatch=32), path, encoder=encoder)
    engine.start()
    wide, fits, causal = (
        fake_medium(seed, grid=None, n_rows=n_rows, causal=causal)
        for seed, (n_rows, causal) in enumerate([(33, False), (32, False), (60, True)])
    )
    results = await asyncio.gather(
        *(answer(engine, media_plan([50], medium, [51])) for medium in (wide, fits, causal)),
        answer(engine, media_plan([50, 51], max_tokens=60)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [EngineFailure, tuple, tuple, tuple]
    assert results[0].message == "this image has more rows than a step of this server takes"
    assert engine.counters()["failed"] == 1
    assert encoder.encodings[0].left
    await engine.close()


class FailingOnce:
    """A Runner whose next step fails."""

    def __init__(self, runner):
        self._runner = runner
        self._codes = [2]

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def run(self, max_steps):
        return self._codes.pop() if self._codes else self._runner.run(max_steps)


async def test_who_fails_wants_no_rows_any_more(tiny_model, caplog):
    """At once, though nobody else comes: an encode in the queue is for nobody then."""
    async with media_engine(tiny_model, "attention", seconds=5) as (engine, encoder):
        engine._worker.runner = FailingOnce(engine._worker.runner)
        with pytest.raises(EngineFailure, match="llama_decode"):
            await answer(engine, media_plan([50], fake_medium(1), [51]))
        assert [encoding.left for encoding in encoder.encodings] == [True]


async def test_all_who_wait_for_a_medium_are_told_of_the_projectors_failure(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.02) as (engine, encoder):
        shown = fake_medium(1)
        encoder.faults[shown.digest] = ProjectorFailure("image")
        plans = [media_plan([50, k], shown, [51]) for k in (52, 53)]
        errors = await asyncio.gather(*(answer(engine, plan) for plan in plans), return_exceptions=True)
        assert [type(error) for error in errors] == [ProjectorFailure] * 2
        assert {error.message for error in errors} == {"the projector failed on this image"}


@pytest.fixture
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    yield rig
    rig.close()


def with_picture(rig, medium):
    """A sequence whose first rows are those of a picture."""
    n_rows = medium.chunks[1].n_rows
    prompt = array("i", [*row_ids(medium.digest, 1, n_rows), 60])
    return rig.sequence(prompt, spans=(Span(0, n_rows, n_rows, True),), media=(MediaSpan(0, medium, 1),))


@pytest.mark.parametrize("end", ["forgotten", "waiting", "cleared"])
def test_rows_that_were_given_are_let_go_of_with_their_sequence(rig, end):
    """Whoever is to be computed later gets them again."""
    sequence = with_picture(rig, fake_medium(1, grid=None, n_rows=9))
    encoder = FakeEncoder()
    outputs = EncoderOutputs(rig.runner, encoder, lambda: None)
    rig.runner.add(sequence)
    outputs.want(sequence, 0)
    assert outputs.deliver() == []
    assert sequence.awaited is None
    if end == "forgotten":
        outputs.forget(sequence)
    elif end == "waiting":
        rig.runner.remove(sequence)
        assert sequence.phase == PHASE_WAITING
        assert outputs.deliver() == []
    else:
        outputs.clear()
    assert sequence.awaited == 0
    assert not outputs.awaits
    assert encoder.encodings[0].left
    outputs.forget(sequence)  # of whom nothing is known


class Awaiting(FakeSequence):
    """Stands before rows of media."""

    phase, awaited = PHASE_PREFILLING, 0

    def __init__(self, tag):
        super().__init__(tag, media=(MediaSpan(1, fake_medium(tag), 1),), awaited=0)

    def next_span(self, n):
        return 0

    def drop_rows(self, wanted=False):
        pass


def idling(pace, *tags):
    """A worker whose runner has nothing to compute, in its first round: all wait for rows."""
    runner = FakeRunner(script=[PAUSED] * 9)
    transfer = KVTransfer(runner, PrefixCache(0), pace)
    scheduler = Scheduler(n_seq_max=4, n_cells=None)
    worker = Worker(runner, scheduler, transfer, lambda *_: None, pace, encoder=SilentEncoder())
    worker.enqueue(arrival([Awaiting(tag) for tag in tags]))
    worker._take_orders()
    return worker, runner


def test_a_worker_sleeps_only_where_its_runner_had_nothing_to_compute():
    """A run may also end because it was interrupted, or after one step."""
    worker, runner = idling(Pace(), 1)
    runner.idled = False
    worker._shares.round(worker)
    assert worker.has_work
    runner.idled = True
    worker._shares.round(worker)
    assert not worker.has_work


def test_a_worker_sleeps_only_once_all_who_have_ended_are_released():
    """Of which there is one a round; whoever waits for rows may wait for long."""
    worker, runner = idling(Pace(copy_seconds=-1), 1, 2, 3)
    worker._shares.round(worker)
    assert not worker.has_work
    worker.cancel([2, 3])
    worker._take_orders()
    worker._shares.round(worker)
    assert len(runner.running) == 2
    assert worker.has_work
    worker._shares.round(worker)
    assert len(runner.running) == 1
    while worker.has_work:
        worker._shares.round(worker)
    assert worker.counters()["cancelled"] == 2


def test_who_follows_another_leader_asks_for_the_rows_behind_its_prefix(tiny_model):
    """Between partitions it takes nothing before they are here; the first leader was to compute them."""
    rig = Rig(tiny_model("tiny-llama"), n_seq_max=4, kv_unified=False)
    text = [33 + 7 * i % 300 for i in range(64)]
    shown = fake_medium(1, grid=None, n_rows=200)
    prompt = array("i", [*text, *row_ids(shown.digest, 1, 200), 60, 61])
    leads, follows = (
        rig.sequence(prompt, tag, spans=(Span(64, 200, 200, True),), media=(MediaSpan(64, shown, 1),), max_tokens=2)
        for tag in (1, 2)
    )
    runs = rig.sequence([*text, 50, 51], 3, max_tokens=200)
    encoder = FakeEncoder()
    outputs = EncoderOutputs(rig.runner, encoder, lambda: None)
    rig.runner.add(runs)
    rig.runner.run(3)
    for sequence in (leads, follows):
        shared, _ = rig.runner.shareable(sequence)
        rig.runner.add(sequence)
        outputs.want(sequence, shared)
    outputs.forget(leads)
    rig.runner.remove(leads)
    while not follows.finished:
        assert not runs.finished
        rig.runner.run(1)
        outputs.deliver()
    outputs.clear()
    rig.runner.clear()
    rig.close()
