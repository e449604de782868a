"""Deltas → the events of one response, in the order OpenAI's clients enforce."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.delivery import tokens_size
from llamafast.api.logprobs import TokenNames, encoded_tokens
from llamafast.api.responses import events
from llamafast.api.responses.client_tools import CLIENT_TOOLS
from llamafast.api.responses.events import Event, ItemStatus, OutputItem
from llamafast.api.responses.output import (
    OpenCall,
    OpenClientCall,
    OpenCustomCall,
    OpenFunctionCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
)
from llamafast.api.responses.schema import IncompleteDetails, Response, ResponseError, ResponseUsage
from llamafast.api.responses.tools import ToolTable
from llamafast.api.schema.fragments import Usage
from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.chat.reply.reader import ReplyFinish
from llamafast.chat.reply.spelled import SpelledTexts
from llamafast.engine.types import TokenLogprob
from llamafast.errors import LlamafastError

# An event without its text takes as long to make, and to encode, as so many bytes take to decode.
EVENT_BYTES = 32

_WHOLE = (
    events.PartDone,
    events.TextDone,
    events.ReasoningTextDone,
    events.SummaryPartDone,
    events.SummaryTextDone,
    events.ArgumentsDone,
    events.CustomInputDone,
)
_CALLS: dict[str, type[OpenCall]] = {"function": OpenFunctionCall, "custom": OpenCustomCall}


class ResponseWriter:
    """Tells one response; every method returns the events that follow the ones before.

    An item is closed as soon as another kind of Delta comes, a call when it ends. ``response`` is a snapshot that is
    final after ``closing`` or ``failure``: streamed or not, an answer is what its events say. ``names`` are those of
    tokens, where their log probabilities are wanted. ``n_bytes`` is about the size of ``response`` as JSON, first that
    of what it repeats of its request.
    """

    def __init__(
        self,
        response: Response,
        tools: ToolTable,
        stream_id: str | UnsetType = UNSET,
        names: TokenNames | None = None,
        n_bytes: int = 0,
    ) -> None:
        self.response = response
        self.n_bytes = n_bytes
        self._tools = tools
        self._names = names
        self._spelled = None if names is None else SpelledTexts(names.piece)
        self._stream_id = stream_id
        self._sequence_number = 0
        self._events: list[Event] = []
        self._n_items = 0
        self._output: dict[int, OutputItem] = {}
        self._text: OpenMessage | OpenReasoning | None = None
        self._calls: dict[int, OpenCall] = {}
        self._n_client_calls = 0

    def opening(self) -> list[Event]:
        self._emit(events.Created, response=self.response)
        self._emit(events.InProgress, response=self.response)
        return self._take()

    def adding_size(self, deltas: Sequence[Delta], tokens: Sequence[TokenLogprob]) -> int:
        """What ``add`` takes, as a number of bytes for ``run_sized``."""
        size = EVENT_BYTES * len(deltas)
        if self._spelled is not None:
            size += tokens_size(self._spelled.n_kept + len(tokens), self.response.top_logprobs)
        return size

    def telling_size(self, told: Sequence[Event]) -> int:
        """The same for the JSON of the events ``told``: all but those of a piece of text may hold the whole answer."""
        whole = sum(not isinstance(event, events.InItem) or isinstance(event, _WHOLE) for event in told)
        return EVENT_BYTES * len(told) + self.n_bytes * whole

    def add(self, deltas: Sequence[Delta], tokens: Sequence[TokenLogprob] = ()) -> list[Event]:
        """``tokens`` are those that came with the ``deltas``."""
        logprobs = self._logprobs(deltas, tokens)
        for delta, spelled in zip(deltas, logprobs, strict=False):
            match delta:
                case ContentDelta():
                    self.n_bytes += len(delta.text) + sum(map(len, spelled))
                    self._message().add(delta.text, self._emit, spelled)
                case ReasoningDelta():
                    self.n_bytes += len(delta.text)
                    self._reasoning().add(delta.text, self._emit)
                case ToolCallBegin():
                    self._close_text("completed")
                    if (call := self._call(delta)) is not None:
                        self._calls[delta.index] = call
                        call.open(self._emit)
                case ToolCallArguments():
                    if (call := self._calls.get(delta.index)) is not None:
                        self.n_bytes += len(delta.text)
                        call.add(delta.text, self._emit)
                case ToolCallEnd():
                    if (call := self._calls.pop(delta.index, None)) is not None:
                        self._close(call, "completed")
        return self._take()

    def _logprobs(self, deltas: Sequence[Delta], tokens: Sequence[TokenLogprob]) -> Iterable[list[msgspec.Raw]]:
        """Those of the text of each Delta, as JSON."""
        if self._names is None or self._spelled is None:
            return repeat([])
        return [encoded_tokens(spelled, self._names) for spelled in self._spelled.of(deltas, tokens)]

    def closing(self, reason: ReplyFinish, usage: Usage) -> list[Event]:
        """The answer is over. An answer without any text is an empty message, so that a conversation can go on."""
        cut = reason == "length"
        self._close_open("incomplete" if cut else "completed")
        if not self._n_items:
            self._message()
            self._close_text("completed")
        if cut:
            details = IncompleteDetails("max_output_tokens")
            return self._end(
                events.Incomplete, status="incomplete", incomplete_details=details, usage=ResponseUsage.of(usage)
            )
        return self._complete(usage)

    def closing_prefill(self, usage: Usage) -> list[Event]:
        """Nothing was to be generated: the prompt is in memory, the output is empty."""
        return self._complete(usage)

    def failure(self, error: LlamafastError) -> list[Event]:
        """The answer ends with an error; what was written of it stays."""
        self._close_open("incomplete")
        return self._end(events.Failed, status="failed", error=ResponseError.of(error))

    def _complete(self, usage: Usage) -> list[Event]:
        return self._end(
            events.Completed, status="completed", completed_at=int(time.time()), usage=ResponseUsage.of(usage)
        )

    def _end(self, kind: type[Event], **changes: Any) -> list[Event]:
        output = [self._output[index] for index in sorted(self._output)]
        self.response = msgspec.structs.replace(self.response, output=output, **changes)
        self._emit(kind, response=self.response)
        return self._take()

    def _message(self) -> OpenMessage:
        """The open message, opened now if it was not."""
        if not isinstance(self._text, OpenMessage):
            self._close_text("completed")
            self._text = OpenMessage(self._next_index())
            self._text.open(self._emit)
        return self._text

    def _reasoning(self) -> OpenReasoning:
        if not isinstance(self._text, OpenReasoning):
            self._close_text("completed")
            self._text = OpenReasoning(self._next_index(), summarised=self.response.reasoning.summary is not None)
            self._text.open(self._emit)
        return self._text

    def _call(self, begin: ToolCallBegin) -> OpenCall | None:
        """None for one more of OpenAI's own tools than ``max_tool_calls`` allows: the model's try is passed over."""
        tool = self._tools.tool_name(begin.name)
        if tool.kind in CLIENT_TOOLS:
            if self._n_client_calls == self.response.max_tool_calls:
                return None
            self._n_client_calls += 1
        return _CALLS.get(tool.kind, OpenClientCall)(self._next_index(), begin.id, tool)

    def _next_index(self) -> int:
        self._n_items += 1
        return self._n_items - 1

    def _close_text(self, status: ItemStatus) -> None:
        if self._text is not None:
            self._close(self._text, status)
            self._text = None

    def _close_open(self, status: ItemStatus) -> None:
        self._close_text(status)
        for call in self._calls.values():
            self._close(call, status)
        self._calls.clear()

    def _close(self, item: OpenItem, status: ItemStatus) -> None:
        self._output[item.output_index] = item.close(status, self._emit)

    def _emit(self, kind: type[Event], /, **fields: Any) -> None:
        self._events.append(kind(sequence_number=self._sequence_number, stream_id=self._stream_id, **fields))
        self._sequence_number += 1

    def _take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken
