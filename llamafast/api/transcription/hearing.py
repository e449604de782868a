"""One recording while it is written down: its pieces go through the engine in their order, and are one text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from llamafast.api.delivery import read_replies, usage_of
from llamafast.api.transcription.schema import InputTokenDetails, TranscriptionUsage
from llamafast.chat.plan import ChatPlan
from llamafast.chat.reply.deltas import ContentDelta
from llamafast.chat.reply.reader import Reply
from llamafast.chat.transcription import Transcript
from llamafast.engine.media import MediaSource
from llamafast.engine.types import EnginePort, FinishReason, Generation, Tenant
from llamafast.errors import QueueFull

Planned = Callable[[MediaSource], Awaitable[ChatPlan]]
Heard = Callable[[Generation], Generation]


class _Begun(NamedTuple):
    generation: Generation
    replies: list[Reply]


class Hearing:
    """``planned`` loads a piece and plans what is asked about it; ``heard`` gives what is read in a Generation's place.
    While one piece is written down the next one is encoded and read, and nothing is further ahead: nobody's recording
    fills the queue. To be closed.

    Its counts (``api.record.Counted``) are those of all pieces together, its times those of the first.
    """

    def __init__(
        self, pieces: Sequence[MediaSource], planned: Planned, engine: EnginePort, tenant: Tenant, heard: Heard
    ) -> None:
        self._heard = heard
        self._pieces = list(pieces)
        self._n_pieces = len(self._pieces)
        self._planned = planned
        self._engine = engine
        self._tenant = tenant
        self._transcript = Transcript()
        self._asked: list[asyncio.Task[_Begun]] = []
        self._begun: list[_Begun] = []

    @property
    def text(self) -> str:
        """What was told so far."""
        return self._transcript.text

    async def submit(self) -> None:
        """Return once the engine has the first piece. Raises what the loader, the plan or the engine does."""
        await self._ask(0)

    async def begin(self, seconds: float) -> None:
        """Return once something is known of the first piece, or after so long. Raises what ended it."""
        await (await self._ask(0)).generation.begin(seconds)

    async def texts(self) -> AsyncIterator[str]:
        """More of the text, whenever it is certain. Raises the LlamafastError that ended a piece."""
        for i in range(self._n_pieces):
            begun = await self._ask(i)
            if i + 1 < self._n_pieces:
                self._ask(i + 1)
            async for parts in read_replies(begun.generation, begun.replies):
                deltas = [delta for part in parts for delta in part.deltas]
                said = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
                if text := self._transcript.add(said):
                    yield text
            if text := self._transcript.end_piece():
                yield text

    async def close(self) -> None:
        """Nothing of it runs or waits any more. Whoever waits for that may be cancelled meanwhile."""
        for task in self._asked:
            task.cancel()
        for begun in self._begun:
            begun.generation.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    def usage(self) -> TranscriptionUsage:
        told = [usage_of(begun.generation, begun.replies) for begun in self._begun]
        n_input, n_output = sum(one.prompt_tokens for one in told), sum(one.completion_tokens for one in told)
        n_audio = sum(begun.generation.media_tokens.get("audio", 0) for begun in self._begun)
        details = InputTokenDetails(n_audio, n_input - n_audio)
        return TranscriptionUsage(n_input, n_output, n_input + n_output, details)

    @property
    def prompt_tokens(self) -> int:
        return sum(begun.generation.prompt_tokens for begun in self._begun)

    @property
    def completion_tokens(self) -> int:
        return sum(begun.generation.completion_tokens for begun in self._begun)

    @property
    def cached_tokens(self) -> int:
        return sum(begun.generation.cached_tokens for begun in self._begun)

    @property
    def finish_reasons(self) -> set[FinishReason]:
        return {reason for begun in self._begun for reason in begun.generation.finish_reasons}

    @property
    def queue_seconds(self) -> float | None:
        return self._begun[0].generation.queue_seconds if self._begun else None

    @property
    def first_token_seconds(self) -> float | None:
        return self._begun[0].generation.first_token_seconds if self._begun else None

    def _ask(self, i: int) -> asyncio.Task[_Begun]:
        """Piece ``i``, which is asked for once."""
        if i == len(self._asked):
            self._asked.append(asyncio.create_task(self._submitted(self._pieces.pop(0))))
        return self._asked[i]

    async def _submitted(self, piece: MediaSource) -> _Begun:
        plan = await self._planned(piece)
        await self._engine.prepare(plan.plan)
        while True:
            try:
                generation = self._engine.submit(plan.plan, self._tenant)
                break
            except QueueFull:
                if not self._begun:
                    raise
                # who was let in with the first piece is not sent away in the middle of an answer
                await asyncio.sleep(self._engine.retry_after())
        begun = _Begun(self._heard(generation), plan.replies())
        self._begun.append(begun)
        return begun
