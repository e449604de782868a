"""POST /v1/chat/completions: request, reply, streamed chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llamafast.api.schema.fragments import (
    BUDGETS,
    MAX_TOP_LOGPROBS,
    SYSTEM_FINGERPRINT,
    OutputTokens,
    PlatformOptions,
    ReasoningTokens,
    StopReason,
    StreamedIndex,
    StreamedText,
    TruncatedTokens,
    Usage,
)
from llamafast.api.schema.timings import Timings
from llamafast.chat.request import ChatTask
from llamafast.chat.tools import ToolChoice, choose_tools, function_named, read_functions, read_tools
from llamafast.engine.media import MediaSource, Medium
from llamafast.errors import InvalidRequest

_SERVED = ("timings_per_token", "return_progress", "prompt_logprobs", "echo")

ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]


class ReasoningControls(Struct):
    """OpenRouter's: what else is said in `reasoning_effort`, `enable_thinking`, a budget and `include_reasoning`."""

    effort: str | None = None
    max_tokens: ReasoningTokens | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class PredictedPart(Struct):
    type: Literal["text"]
    text: str


class Prediction(Struct):
    """What much of the answer is expected to repeat."""

    type: Literal["content"]
    content: str | list[PredictedPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(PlatformOptions, kw_only=True):
    """Messages stay plain objects: the template may read fields that OpenAI does not name. A budget of reasoning has
    vLLM's name, or one of llama-server's.

    The fields from ``store`` on are checked for their type and have no effect here.
    """

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **{name: idle for name, idle in PlatformOptions.unserved.items() if name not in _SERVED},
        "add_special_tokens": (False,),
    }
    foreign: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("prompt", "input", "previous_response_id", "conversation"), "all of it in `messages`"),
        "instructions": "a `system` message in `messages`",
        **dict.fromkeys(("truncation", "context_management"), "`messages` that fit"),
        "max_output_tokens": "`max_completion_tokens`",
        "text": "`response_format` and `verbosity`",
        "include": "`logprobs`",
    }

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: OutputTokens | None = None
    n_predict: OutputTokens | None = None
    truncate_prompt_tokens: TruncatedTokens | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | str | None = None
    documents: list[dict[str, Any]] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    reasoning: ReasoningControls | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: ReasoningTokens | None = None
    reasoning_budget: ReasoningTokens | None = None
    reasoning_budget_tokens: ReasoningTokens | None = None
    thinking_budget_tokens: ReasoningTokens | None = None
    verbosity: str | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    parallel_tool_calls: bool | None = None
    parse_tool_calls: bool | None = None
    add_special_tokens: bool | None = None

    tool_choice: str | dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    prediction: Prediction | None = None

    store: bool | None = None
    metadata: dict[str, Any] | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        yield from super().twins()
        controls = self.reasoning or ReasoningControls()
        told = None if controls.exclude is None else not controls.exclude
        named = {"type": "function", "function": self.function_call}
        yield self.under("max_tokens", "n_predict", "max_completion_tokens")
        yield self.under(*BUDGETS) | {"reasoning.max_tokens": controls.max_tokens}
        yield self.under("reasoning_effort") | {"reasoning.effort": controls.effort}
        yield self.under("enable_thinking") | {"reasoning.enabled": controls.enabled}
        yield self.under("include_reasoning") | {"reasoning.exclude": told}
        yield self.under("tool_choice") | {
            "function_call": named if isinstance(self.function_call, dict) else self.function_call
        }

    def task(self, media: Sequence[Medium] = (), sources: Sequence[MediaSource] = ()) -> ChatTask:
        """``media`` are those whose words are in ``messages`` by then, ``sources`` what the client sent of them.

        Raises InvalidRequest or UnsupportedParameter for tools that are none.
        """
        names = {"tools": "functions"} if self.functions else {}
        controls = self.reasoning or ReasoningControls()
        max_tokens = self.max_tokens
        for name in ("n_predict", "max_completion_tokens"):
            if (given := getattr(self, name)) is not None:
                max_tokens, names["max_tokens"] = given, name
        return ChatTask(
            **self.task_fields(),
            names=names,
            messages=self.messages,
            media=media,
            sources=sources,
            max_tokens=None if max_tokens is None or max_tokens < 0 else max_tokens,
            truncated=self.truncate_prompt_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=self._tool_choice(),
            parallel=False if self.functions else self.parallel_tool_calls,
            documents=self.documents,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self._continued,
            reasoning_effort=self.reasoning_effort or controls.effort,
            enable_thinking=controls.enabled if self.enable_thinking is None else self.enable_thinking,
            reasoning_budget=self._reasoning_budget(controls),
            verbosity=self.verbosity,
            variables=self.chat_template_kwargs or {},
            split_reasoning=self.reasoning_format != "none",
            parses_calls=self.parse_tool_calls is not False,
            prediction="" if self.prediction is None else self.prediction.text,
        )

    @property
    def tells_reasoning(self) -> bool:
        return self.include_reasoning is not False and not (self.reasoning and self.reasoning.exclude)

    def _reasoning_budget(self, controls: ReasoningControls) -> int | None:
        said = [*self.under(*BUDGETS).values(), controls.max_tokens]
        return next((n for n in said if n is not None and n >= 0), None)

    def check_echo(self) -> None:
        """Raises InvalidRequest where there is nothing to be repeated."""
        last = self.messages[-1]
        answers = last.get("role") == "assistant" and isinstance(last.get("content"), str)
        if self.echo and not (answers and self._continued is True):
            told = "`echo` repeats the text of a last message that is continued (`continue_final_message`)"
            raise InvalidRequest(told, param="echo")

    @property
    def echoed(self) -> str:
        """What the answer begins with."""
        return self.messages[-1]["content"] if self.echo else ""

    @property
    def _continued(self) -> bool | str:
        """DeepSeek and Mistral say it in the last message: ``prefix``."""
        if self.continue_final_message is not None:
            return self.continue_final_message
        last = self.messages[-1]
        return last.get("role") == "assistant" and last.get("prefix") is True

    def _tool_choice(self) -> ToolChoice:
        if self.functions and self.tools:
            raise InvalidRequest("`functions` is the old form of `tools`: send one of them", param="functions")
        tools = read_functions(self.functions) if self.functions else read_tools(self.tools)
        # where both are sent they say the same
        name = "function_call" if self.tool_choice is None and self.function_call is not None else "tool_choice"
        return choose_tools(tools, getattr(self, name), function_named(tools), name)


class FunctionCall(Struct):
    name: str
    arguments: str


class MessageToolCall(Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Struct):
    """``content`` is null in a message that only calls tools; ``function_call`` answers the old ``functions``."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class TopLogprob(Struct):
    """``bytes`` are the token's own: one character may be divided among several tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct):
    content: list[ChatTokenLogprob] | list[Raw]
    refusal: None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    finish_reason: ChatFinish | None
    logprobs: ChoiceLogprobs | None = None
    stop_reason: StopReason | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    service_tier: Literal["default"] = "default"
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChatChoice] | list[Raw]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Raw | None] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class FunctionDelta(Struct):
    """The name comes whole in a call's first chunk, the arguments in pieces."""

    name: str | UnsetType = UNSET
    arguments: StreamedText | UnsetType = UNSET


class ToolCallDelta(Struct):
    """``index`` tells the calls of a message apart; ``id`` and ``type`` come in a call's first chunk."""

    index: StreamedIndex
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class ChatDelta(Struct):
    """What a chunk adds to a message; the fields that it does not touch are absent."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: StreamedText | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: StreamedText | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: StreamedIndex
    delta: ChatDelta
    finish_reason: ChatFinish | None = None
    logprobs: ChoiceLogprobs | None = None
    stop_reason: StopReason | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a stream: ``usage`` is null but in the last one, absent when not asked for. Where
    they are asked for, ``timings`` and ``prompt_progress`` are added to it (``api.measured``)."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    service_tier: Literal["default"] = "default"
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
