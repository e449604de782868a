"""What a streamed chat reply looks like: Deltas → chunks → frames."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.chat.schema import (
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatFinish,
    ChatRequest,
    FunctionDelta,
    ToolCallDelta,
)
from llamafast.api.delivery import usage_of
from llamafast.api.logprobs import TokenNames, chat_logprobs
from llamafast.api.measured import Measured
from llamafast.api.sse import HOLE, encode, frame, frame_pieces
from llamafast.chat.reply.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallBegin
from llamafast.chat.reply.reader import Reply, ReplyFinish
from llamafast.engine.types import Event, Generation


class ChatFrames:
    """The frames of one request (``api.sse.Frames``); ``chunk`` is what all its chunks have in common, ``prompt_ids``
    are for the first. What is ``measured`` comes beside the text.

    Text and arguments, which come with every token, are filled into frames that were encoded once.
    """

    def __init__(
        self,
        chunk: ChatChunk,
        replies: list[Reply],
        request: ChatRequest,
        names: TokenNames,
        measured: Measured,
        prompt_ids: list[int] | UnsetType = UNSET,
    ) -> None:
        self._measured = measured
        self._wants_usage = request.wants_usage
        self._chunk_without_choices = msgspec.structs.replace(chunk, usage=None if self._wants_usage else UNSET)
        self._replies = replies
        self._prompt_ids = prompt_ids
        self._names = names
        self._legacy = bool(request.functions)
        self._tells_reasoning = request.tells_reasoning
        self._echoed = request.echoed
        self._may_call = bool(request.tools or request.functions)
        self._content = self._pieces(ChatDelta(content=HOLE))
        self._reasoning = self._pieces(ChatDelta(reasoning_content=HOLE))
        self._arguments = self._pieces(
            ChatDelta(tool_calls=[ToolCallDelta(HOLE, function=FunctionDelta(arguments=HOLE))])
        )

    def opening(self) -> Iterator[bytes]:
        role = ChatDelta(role="assistant", content=None if self._may_call else "", refusal=None)
        first, *others = (self._chunk(ChatChunkChoice(index, role)) for index in range(len(self._replies)))
        first.prompt_token_ids = self._prompt_ids
        yield b"".join(map(frame, (first, *others)))
        if self._echoed:
            yield b"".join(self._delta(index, ContentDelta(self._echoed)) for index in range(len(self._replies)))

    def event(self, event: Event) -> bytes:
        index, deltas, finish_reason, token_logprobs, matched_stop, token_ids, _ = self._replies[event.index].read(
            event
        )
        frames = [told for delta in deltas if (told := self._delta(index, delta))]
        if token_logprobs:
            # they come before the text they belong to, which may be held back still
            logprobs = chat_logprobs(token_logprobs, self._names)
            frames.insert(0, frame(self._chunk(ChatChunkChoice(index, ChatDelta(), logprobs=logprobs))))
        if token_ids:
            ids = ChatChunkChoice(index, ChatDelta(), token_ids=list(token_ids))
            frames.insert(0, frame(self._chunk(ids)))
        if finish_reason is not None:
            finish = finish_on_wire(finish_reason, self._legacy)
            last = self._chunk(ChatChunkChoice(index, ChatDelta(), finish, stop_reason=matched_stop))
            frames.append(frame(last))
        return self._measured.framed(frames, lambda: self._frame(0, ChatDelta()))

    def closing(self, generation: Generation) -> bytes:
        if not self._wants_usage:
            return b""
        return frame(msgspec.structs.replace(self._chunk_without_choices, usage=usage_of(generation, self._replies)))

    def _delta(self, index: int, delta: Delta) -> bytes:
        match delta:
            case ContentDelta(text):
                before, between, after = self._content
                return b"%b%d%b%b%b" % (before, index, between, encode(text), after)
            case ReasoningDelta(text) if self._tells_reasoning:
                before, between, after = self._reasoning
                return b"%b%d%b%b%b" % (before, index, between, encode(text), after)
            case ToolCallArguments(call, text):
                if self._legacy:
                    return self._frame(index, ChatDelta(function_call=FunctionDelta(arguments=text)))
                before, between, inner, after = self._arguments
                return b"%b%d%b%d%b%b%b" % (before, index, between, call, inner, encode(text), after)
            case ToolCallBegin(call, id, name):
                function = FunctionDelta(name, "")
                if self._legacy:
                    return self._frame(index, ChatDelta(function_call=function))
                return self._frame(index, ChatDelta(tool_calls=[ToolCallDelta(call, id, "function", function)]))
        return b""

    def _frame(self, index: int, delta: ChatDelta) -> bytes:
        return frame(self._chunk(ChatChunkChoice(index, delta)))

    def _pieces(self, delta: ChatDelta) -> list[bytes]:
        return frame_pieces(self._chunk(ChatChunkChoice(HOLE, delta)))

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return msgspec.structs.replace(self._chunk_without_choices, choices=[choice])


def finish_on_wire(reason: ReplyFinish, legacy: bool) -> ChatFinish:
    """``finish_reason`` of a choice; ``legacy`` answers ``functions``."""
    return "function_call" if legacy and reason == "tool_calls" else reason
