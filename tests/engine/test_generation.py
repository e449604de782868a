"""The caller's end of a request."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from llamafast.engine.generation import Generation
from llamafast.engine.types import Event
from llamafast.errors import EngineFailure


@pytest.fixture
def cancelled():
    return []


@pytest.fixture
def finished():
    return []


@pytest.fixture
def generation(cancelled, finished):
    return Generation(2, 7, cancelled.append, finished.append)


async def test_events_of_a_choice_are_merged_while_nobody_looks(generation):
    generation.push(0, "a", 1, None)
    generation.push(1, "x", 1, None)
    generation.push(0, "b", 2, "stop")
    assert await anext(generation) == [Event(0, "ab", 3, "stop"), Event(1, "x", 1, None)]
    assert generation.completion_tokens == 4


async def test_it_ends_when_every_choice_has_finished(generation, finished):
    generation.push(0, "", 1, "stop")
    assert finished == []
    generation.push(1, "y", 1, "length")
    assert finished == [generation]
    assert [len(batch) async for batch in generation] == [2]
    assert generation.finished


async def test_which_stop_was_met_is_told_as_the_plan_has_it(generation):
    generation.stops = ("END", 7)
    generation.push(0, "a", 1, None)
    generation.push(0, "", 1, "stop", matched_stop=0)
    generation.push(1, "", 1, "stop", matched_stop=1)
    assert await anext(generation) == [
        Event(0, "a", 2, "stop", matched_stop="END"), Event(1, "", 1, "stop", matched_stop=7),
    ]  # fmt: skip


async def test_the_ids_of_tokens_are_merged_with_their_events(generation):
    for ids in (b"", array("i", [5]).tobytes(), array("i", [6, 7]).tobytes()):
        generation.push(0, "a", 1, None, ids=ids)
    generation.push(1, "b", 1, "stop")
    first, second = await anext(generation)
    assert (first.token_ids, second.token_ids) == ([5, 6, 7], None)


async def test_how_much_of_the_prompts_is_in_memory_by_whoever_is_furthest():
    generation = Generation(4, 30, lambda _: None, lambda _: None, choices_per_prompt=2)
    seen = []
    for index, n_processed in ((0, 4), (1, 9), (0, 8), (0, 2), (2, 5), (3, 20), (1, 10)):
        generation.push(index, "", 0, None, n_processed=n_processed)
        seen.append(generation.processed_tokens)
    assert seen == [4, 9, 9, 9, 14, 29, 30]


async def test_a_waiting_consumer_is_woken(generation):
    waiting = asyncio.create_task(anext(generation))
    await asyncio.sleep(0)
    generation.push(1, "late", 1, None)
    assert await waiting == [Event(1, "late", 1, None)]


async def test_an_error_comes_after_what_was_said_before(generation):
    generation.push(0, "a", 1, None)
    generation.fail(EngineFailure("broken"))
    assert await anext(generation) == [Event(0, "a", 1, None)]
    with pytest.raises(EngineFailure):
        await anext(generation)


async def test_cancel_asks_once_there_is_something_to_cancel(generation, cancelled):
    generation.cancel()
    assert cancelled == [generation]
    generation.push(0, "", 1, "stop")
    generation.push(1, "", 1, "stop")
    generation.cancel()
    assert cancelled == [generation]


async def test_who_is_aborted_is_cancelled_and_told_why(generation, cancelled):
    generation.push(0, "a", 1, None)
    generation.abort(EngineFailure("broken"))
    generation.abort(EngineFailure("again"))
    assert cancelled == [generation]
    assert await anext(generation) == [Event(0, "a", 1, None)]
    with pytest.raises(EngineFailure, match="broken"):
        await anext(generation)
