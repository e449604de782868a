"""What a response is made of (output items) and how it is told (stream events)."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from llamafast.api.responses.schema import Response

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, kw_only=True):
    """``logprobs`` are the JSON of a ChatTokenLogprob each, here and in events."""

    type: Literal["output_text"] = "output_text"
    annotations: list[Any]
    logprobs: list[Raw]
    text: str


class ReasoningText(Struct, kw_only=True):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputMessage(Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class SummaryText(Struct, kw_only=True):
    type: Literal["summary_text"] = "summary_text"
    text: str


class ReasoningItem(Struct, kw_only=True):
    """``encrypted_content`` is there, null, for those who ask to ``include`` it: the text itself is in ``content``."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: None = None


class Call(Struct, kw_only=True):
    """Of any tool. ``call_id`` is what its output will name it by."""

    id: str
    status: ItemStatus
    call_id: str


class FunctionCall(Call, kw_only=True):
    type: Literal["function_call"] = "function_call"
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


class CustomToolCall(Call, kw_only=True):
    type: Literal["custom_tool_call"] = "custom_tool_call"
    name: str
    namespace: str | UnsetType = UNSET
    input: str


class ExecAction(Struct, kw_only=True):
    type: Literal["exec"] = "exec"
    command: list[str]
    env: dict[str, str] = {}
    timeout_ms: int | None = None
    user: str | None = None
    working_directory: str | None = None


class LocalShellCall(Call, kw_only=True):
    type: Literal["local_shell_call"] = "local_shell_call"
    action: ExecAction


class ShellAction(Struct, kw_only=True):
    commands: list[str]
    timeout_ms: int | None = None
    max_output_length: int | None = None


class LocalEnvironment(Struct, frozen=True):
    type: Literal["local"] = "local"


class ShellCall(Call, kw_only=True):
    type: Literal["shell_call"] = "shell_call"
    action: ShellAction
    environment: LocalEnvironment = LocalEnvironment()


class PatchOperation(Struct, kw_only=True):
    """``diff`` is absent only where a file is deleted."""

    type: Literal["create_file", "update_file", "delete_file"]
    path: str
    diff: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.diff is UNSET and self.type != "delete_file":
            raise ValueError("a file's content is missing")


class ApplyPatchCall(Call, kw_only=True):
    type: Literal["apply_patch_call"] = "apply_patch_call"
    operation: PatchOperation


ClientCall = LocalShellCall | ShellCall | ApplyPatchCall
OutputItem = OutputMessage | ReasoningItem | FunctionCall | CustomToolCall | ClientCall


class Event(Struct, kw_only=True, tag_field="type"):
    """``sequence_number`` counts the events of one response from 0. Over a WebSocket, ``stream_id`` names the lane."""

    sequence_number: int
    stream_id: str | UnsetType = UNSET

    @property
    def type(self) -> str:
        return str(self.__struct_config__.tag)


class Created(Event, kw_only=True, tag="response.created"):
    """``llamafast_ignored`` are fields of the request that nothing reads: over a socket, where no header can say so."""

    response: Response
    llamafast_ignored: list[str] | UnsetType = UNSET


class InProgress(Event, kw_only=True, tag="response.in_progress"):
    response: Response


class Completed(Event, kw_only=True, tag="response.completed"):
    response: Response


class Incomplete(Event, kw_only=True, tag="response.incomplete"):
    response: Response


class Failed(Event, kw_only=True, tag="response.failed"):
    response: Response


class ItemEvent(Event, kw_only=True):
    output_index: int


class ItemAdded(ItemEvent, kw_only=True, tag="response.output_item.added"):
    item: OutputItem


class ItemDone(ItemEvent, kw_only=True, tag="response.output_item.done"):
    item: OutputItem


class InItem(ItemEvent, kw_only=True):
    item_id: str


class InPart(InItem, kw_only=True):
    content_index: Literal[0] = 0


class PartAdded(InPart, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(InPart, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(InPart, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[Raw]


class TextDone(InPart, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[Raw]


class ReasoningTextDelta(InPart, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningTextDone(InPart, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class InSummary(InItem, kw_only=True):
    summary_index: Literal[0] = 0


class SummaryPartAdded(InSummary, kw_only=True, tag="response.reasoning_summary_part.added"):
    part: SummaryText


class SummaryPartDone(InSummary, kw_only=True, tag="response.reasoning_summary_part.done"):
    part: SummaryText


class SummaryTextDelta(InSummary, kw_only=True, tag="response.reasoning_summary_text.delta"):
    delta: str


class SummaryTextDone(InSummary, kw_only=True, tag="response.reasoning_summary_text.done"):
    text: str


class ArgumentsDelta(InItem, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(InItem, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class CustomInputDelta(InItem, kw_only=True, tag="response.custom_tool_call_input.delta"):
    delta: str


class CustomInputDone(InItem, kw_only=True, tag="response.custom_tool_call_input.done"):
    input: str
