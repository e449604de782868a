"""Generation → client: streamed as it comes, or collected. The same for every endpoint that generates text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

from llamafast.api.http import Exchange
from llamafast.api.schema.fragments import CompletionTokensDetails, PromptTokensDetails, Usage
from llamafast.api.sse import EventStream, Frames
from llamafast.chat.reply.reader import Reply, ReplyPart
from llamafast.engine.media import MediaRows, Medium
from llamafast.engine.types import Event, FinishReason, Generation, TokenLogprob

P = ParamSpec("P")
T = TypeVar("T")

# Decoding, rendering and tokenising this many bytes of body takes a few milliseconds: what one step may wait.
INLINE_BYTES = 16 * 1024
# An alternative to a token takes as long to tell as so many bytes take to decode.
ALTERNATIVE_BYTES = 8
# So does a row of media.
ROW_BYTES = 4


class Answer(NamedTuple):
    """One finished choice."""

    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob]
    matched_stop: str | int | None = None
    token_ids: list[int] | None = None

    @property
    def mean_logprob(self) -> float:
        return sum(token.logprob for token in self.logprobs) / max(1, len(self.logprobs))


async def run_sized(n_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``work(...)``, in a thread when the ``n_bytes`` it chews on would hold up the event loop."""
    if n_bytes <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def rows_size(media: Iterable[Medium]) -> int:
    """What placing rows of media in a prompt takes, as a number of bytes for ``run_sized``."""
    chunks = (chunk for medium in media for chunk in medium.chunks)
    return ROW_BYTES * sum(chunk.n_rows for chunk in chunks if isinstance(chunk, MediaRows))


def events_size(events: Iterable[Event], n_top: int) -> int:
    """What telling ``events`` takes, as a number of bytes for ``run_sized``."""
    return sum(
        len(event.text) + tokens_size(len(event.logprobs or ()) + len(event.prompt_logprobs or ()), n_top)
        for event in events
    )


def tokens_size(n_tokens: int, n_top: int) -> int:
    """The same for the log probabilities of tokens with ``n_top`` alternatives each."""
    return ALTERNATIVE_BYTES * n_tokens * (1 + n_top)


async def stream(
    exchange: Exchange,
    generation: Generation,
    frames: Frames,
    ping_seconds: float,
    n_top: int = 0,
    replies: Sequence[Reply] = (),
) -> None:
    """Send ``generation`` as server-sent events, one write per batch of Events, with ``n_top`` alternatives a token. It
    is not read any further once all ``replies``, where there are any, have ended before it.
    """
    if generation.media_tokens:
        # what is wrong with a picture is mostly known before the first token: time enough to say so in the status
        await generation.begin(ping_seconds)
    async with EventStream(exchange, ping_seconds) as events:
        for opening in frames.opening():
            await events.write(opening)
        async for batch in generation:
            # what a client that reads slowly has let pile up may be much
            if pieces := await run_sized(events_size(batch, n_top), _told, frames, batch):
                await events.write(pieces)
            if replies and all(reply.ended for reply in replies):
                break
        await events.end(frames.closing(generation))


def _told(frames: Frames, batch: Sequence[Event]) -> bytes:
    return b"".join([frames.event(event) for event in batch])


async def collect(generation: Generation, n_choices: int) -> list[Answer]:
    """All choices of ``generation`` by index. Raises the LlamafastError that ended it."""
    texts: list[list[str]] = [[] for _ in range(n_choices)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n_choices)]
    prompt_logprobs: list[list[TokenLogprob]] = [[] for _ in range(n_choices)]
    reasons: dict[int, FinishReason] = {}
    stops: dict[int, str | int | None] = {}
    token_ids: list[list[int]] = [[] for _ in range(n_choices)]
    async for batch in generation:
        for event in batch:
            texts[event.index].append(event.text)
            logprobs[event.index] += event.logprobs or ()
            prompt_logprobs[event.index] += event.prompt_logprobs or ()
            token_ids[event.index] += event.token_ids or ()
            if event.finish_reason is not None:
                reasons[event.index] = event.finish_reason
                stops[event.index] = event.matched_stop
    return [
        Answer(
            "".join(texts[index]),
            reasons[index],
            logprobs[index],
            prompt_logprobs[index],
            stops[index],
            token_ids[index],
        )
        for index in range(n_choices)
    ]


async def read_replies(generation: Generation, replies: Sequence[Reply]) -> AsyncIterator[list[ReplyPart]]:
    """``generation`` as Deltas: for each batch of Events one part per choice that has news. It is not read any further
    once all ``replies`` have ended before it.

    Raises the LlamafastError that ended the generation.
    """
    async for batch in generation:
        yield [replies[event.index].read(event) for event in batch]
        if all(reply.ended for reply in replies):
            return


def usage_of(generation: Generation, replies: Sequence[Reply] = ()) -> Usage:
    """The counts so far; ``replies`` know which of the tokens were reasoning, and which came too late."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    if any(reply.ended for reply in replies):
        completion = sum(reply.n_tokens for reply in replies)
    media = {f"{kind}_tokens": n for kind, n in generation.media_tokens.items()}
    return Usage(
        prompt,
        completion,
        prompt + completion,
        PromptTokensDetails(generation.cached_tokens, **media),
        CompletionTokensDetails(sum(reply.reasoning_tokens for reply in replies), *(generation.predicted_tokens or ())),
    )
