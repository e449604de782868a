"""The output items of a response while they are written: each tells its own events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.responses import events
from llamafast.api.responses.custom_input import CustomInput
from llamafast.api.responses.events import Event, ItemStatus, OutputItem
from llamafast.api.responses.tools import ToolName

_EXEC = msgspec.json.Decoder(events.ExecAction)
_SHELL = msgspec.json.Decoder(events.ShellAction)
_PATCH = msgspec.json.Decoder(events.PatchOperation)


class Emit(Protocol):
    """Adds the next event; what all events have in common is the receiver's affair."""

    def __call__(self, kind: type[Event], /, **fields: Any) -> None: ...


class OpenItem(ABC):
    """An item under way: ``open`` once, ``add`` any number of times, ``close`` once."""

    prefix: ClassVar[str]

    def __init__(self, output_index: int) -> None:
        self.id = f"{self.prefix}_{uuid4().hex}"
        self.output_index = output_index
        self._pieces: list[str] = []

    def open(self, emit: Emit) -> None:
        emit(events.ItemAdded, output_index=self.output_index, item=self._item("in_progress"))

    def add(self, text: str, emit: Emit) -> None:
        self._pieces.append(text)

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        item = self._item(status)
        emit(events.ItemDone, output_index=self.output_index, item=item)
        return item

    @property
    def _text(self) -> str:
        return "".join(self._pieces)

    @abstractmethod
    def _item(self, status: ItemStatus) -> OutputItem: ...


class OpenText(OpenItem):
    """A message or reasoning: one part of text."""

    def open(self, emit: Emit) -> None:
        super().open(emit)
        emit(events.PartAdded, **self._in_part, part=self._part(""))

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        emit(events.PartDone, **self._in_part, part=self._part(self._text))
        return super().close(status, emit)

    @property
    def _in_part(self) -> dict[str, Any]:
        return {"output_index": self.output_index, "item_id": self.id}

    @abstractmethod
    def _part(self, text: str) -> Any: ...


class OpenMessage(OpenText):
    """``logprobs`` are those of the tokens of its text."""

    prefix = "msg"

    def __init__(self, output_index: int) -> None:
        super().__init__(output_index)
        self._logprobs: list[msgspec.Raw] = []

    def add(self, text: str, emit: Emit, logprobs: Sequence[msgspec.Raw] = ()) -> None:
        super().add(text, emit)
        self._logprobs += logprobs
        emit(events.TextDelta, output_index=self.output_index, item_id=self.id, delta=text, logprobs=list(logprobs))

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        emit(events.TextDone, **self._in_part, text=self._text, logprobs=self._logprobs)
        return super().close(status, emit)

    def _part(self, text: str) -> events.OutputText:
        return events.OutputText(text=text, annotations=[], logprobs=self._logprobs if text else [])

    def _item(self, status: ItemStatus) -> OutputItem:
        content = [] if status == "in_progress" else [self._part(self._text)]
        return events.OutputMessage(id=self.id, status=status, content=content)


class OpenReasoning(OpenText):
    """``summarised``: the reasoning is told twice, also as its summary."""

    prefix = "rs"

    def __init__(self, output_index: int, *, summarised: bool) -> None:
        super().__init__(output_index)
        self._summarised = summarised

    def open(self, emit: Emit) -> None:
        super().open(emit)
        if self._summarised:
            emit(events.SummaryPartAdded, **self._in_part, part=events.SummaryText(text=""))

    def add(self, text: str, emit: Emit) -> None:
        super().add(text, emit)
        emit(events.ReasoningTextDelta, output_index=self.output_index, item_id=self.id, delta=text)
        if self._summarised:
            emit(events.SummaryTextDelta, **self._in_part, delta=text)

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        emit(events.ReasoningTextDone, **self._in_part, text=self._text)
        if self._summarised:
            emit(events.SummaryTextDone, **self._in_part, text=self._text)
            emit(events.SummaryPartDone, **self._in_part, part=events.SummaryText(text=self._text))
        return super().close(status, emit)

    def _part(self, text: str) -> events.ReasoningText:
        return events.ReasoningText(text=text)

    def _item(self, status: ItemStatus) -> OutputItem:
        told = status != "in_progress"
        summary = [events.SummaryText(text=self._text)] if told and self._summarised else []
        content = [self._part(self._text)] if told else []
        return events.ReasoningItem(id=self.id, status=status, summary=summary, content=content)


class OpenCall(OpenItem):
    """A call of a tool."""

    def __init__(self, output_index: int, call_id: str, tool: ToolName) -> None:
        super().__init__(output_index)
        self._call_id = call_id
        self._tool = tool
        self._name = tool.name
        self._namespace: str | UnsetType = UNSET if tool.namespace is None else tool.namespace


class OpenFunctionCall(OpenCall):
    prefix = "fc"

    def add(self, text: str, emit: Emit) -> None:
        super().add(text, emit)
        emit(events.ArgumentsDelta, output_index=self.output_index, item_id=self.id, delta=text)

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        where = {"output_index": self.output_index, "item_id": self.id}
        emit(events.ArgumentsDone, **where, name=self._name, arguments=self._text)
        return super().close(status, emit)

    def _item(self, status: ItemStatus) -> OutputItem:
        return events.FunctionCall(
            id=self.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            namespace=self._namespace,
            arguments=self._text,
        )


class OpenCustomCall(OpenCall):
    """What the model writes is an object with the string ``input``; what is told is that string."""

    prefix = "ctc"

    def __init__(self, output_index: int, call_id: str, tool: ToolName) -> None:
        super().__init__(output_index, call_id, tool)
        self._input = CustomInput()

    def add(self, text: str, emit: Emit) -> None:
        self._tell(self._input.feed(text), emit)

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        self._tell(self._input.finish(), emit)
        where = {"output_index": self.output_index, "item_id": self.id}
        emit(events.CustomInputDone, **where, input=self._text)
        return super().close(status, emit)

    def _tell(self, text: str, emit: Emit) -> None:
        if text:
            self._pieces.append(text)
            emit(events.CustomInputDelta, output_index=self.output_index, item_id=self.id, delta=text)

    def _item(self, status: ItemStatus) -> OutputItem:
        return events.CustomToolCall(
            id=self.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            namespace=self._namespace,
            input=self._text,
        )


class OpenClientCall(OpenFunctionCall):
    """A call of a tool that OpenAI has defined, told when it is complete; arguments of another form than the tool's
    make it the call of a function."""

    def open(self, emit: Emit) -> None:
        pass

    def add(self, text: str, emit: Emit) -> None:
        self._pieces.append(text)

    def close(self, status: ItemStatus, emit: Emit) -> OutputItem:
        call = self._client_call(status)
        if call is None:
            OpenItem.open(self, emit)
            emit(events.ArgumentsDelta, output_index=self.output_index, item_id=self.id, delta=self._text)
            return super().close(status, emit)
        added = msgspec.structs.replace(call, status="in_progress")
        emit(events.ItemAdded, output_index=self.output_index, item=added)
        emit(events.ItemDone, output_index=self.output_index, item=call)
        return call

    def _client_call(self, status: ItemStatus) -> events.ClientCall | None:
        names: dict[str, Any] = {"id": self.id, "status": status, "call_id": self._call_id}
        try:
            match self._tool.kind:
                case "local_shell":
                    return events.LocalShellCall(**names, action=_EXEC.decode(self._text))
                case "shell":
                    return events.ShellCall(**names, action=_SHELL.decode(self._text))
                case _:
                    return events.ApplyPatchCall(**names, operation=_PATCH.decode(self._text))
        except msgspec.DecodeError:
            return None
