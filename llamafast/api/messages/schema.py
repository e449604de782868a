"""POST /v1/messages and what belongs to it: the request, the Message, the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from llamafast.api.schema.fragments import BUDGETS, MAX_STOP_STRINGS, GenerationOptions
from llamafast.api.schema.fragments import Usage as ChatUsage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
# What proves at Anthropic that reasoning is the model's own. Here nobody asks for proof, but clients want one.
SIGNATURE = "llamafast"


class Thinking(Struct):
    """``enabled``, ``adaptive`` and ``between_tools`` are one thing to a chat template."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None
    display: str | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(GenerationOptions, kw_only=True):
    """What a message's prompt is made of. Blocks and tools stay plain objects: they are checked where they become chat
    messages and functions. The fields from ``metadata`` on say nothing of the answer here; clients send more such,
    which are passed over."""

    lenient: ClassVar[bool] = True
    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **GenerationOptions.unserved,
        "return_token_ids": (False,),
        "n": (1,),
        "include_stop_str_in_output": (False,),
        "mcp_servers": ([],),
        "n_predict": (),
        **dict.fromkeys(BUDGETS, (-1,)),
        "enable_thinking": (),
        "parallel_tool_calls": (True,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "truncate_prompt_tokens": (),
        "documents": ([],),
    }
    foreign: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("prompt", "input", "previous_response_id", "conversation"), "all of it in `messages`"),
        "instructions": "`system`",
        **dict.fromkeys(("max_completion_tokens", "max_output_tokens"), "`max_tokens`"),
        "stop": "`stop_sequences`",
        "response_format": "`output_config.format`",
        "text": "`output_config.format`",
        "reasoning": "`thinking` and `output_config.effort`",
        "reasoning_effort": "`output_config.effort`",
        "functions": "`tools`",
        "function_call": "`tool_choice`",
        "truncation": "`messages` that fit",
        **dict.fromkeys(
            ("logprobs", "top_logprobs", "echo", "best_of", "include", "verbosity"),
            "the request to /v1/chat/completions",
        ),
    }

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    thread: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # other servers' names, which clients of theirs may send
    n_predict: Any = None
    thinking_token_budget: Any = None
    reasoning_budget: Any = None
    reasoning_budget_tokens: Any = None
    thinking_budget_tokens: Any = None
    enable_thinking: Any = None
    parallel_tool_calls: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    truncate_prompt_tokens: Any = None
    documents: Any = None

    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    metadata: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    service_tier: str | None = None
    container: str | dict[str, Any] | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        yield from super().twins()
        newer = self.output_config and self.output_config.format
        yield {"output_config.format": newer, "output_format": self.output_format}

    @property
    def format(self) -> OutputFormat | None:
        return (self.output_config and self.output_config.format) or self.output_format

    @property
    def omits_thinking(self) -> bool:
        """Whether the client wants to know only that the model has thought."""
        return self.thinking is not None and self.thinking.display == "omitted"


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=0)]


class CacheCreation(Struct):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class OutputTokensDetails(Struct):
    thinking_tokens: int


class Usage(Struct, kw_only=True):
    """The three kinds of input add up to the prompt. What is computed is kept as a matter of course, not written to a
    cache on demand, so ``cache_creation_input_tokens`` is 0."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"] = "standard"

    @classmethod
    def of(cls, usage: ChatUsage) -> Usage:
        """Chat's counts under the names they have here."""
        cached = usage.prompt_tokens_details.cached_tokens
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            cache_creation=CacheCreation(),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
        )


class TextBlock(Struct, tag="text"):
    """Without ``citations``: there are none, and clients do not take null for them."""

    text: str


class ThinkingBlock(Struct, tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(Struct, tag="tool_use"):
    id: str
    name: str
    input: Any


Block = TextBlock | ThinkingBlock | ToolUseBlock


class Message(Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    usage: Usage


class TextDelta(Struct, tag="text_delta"):
    text: str


class ThinkingDelta(Struct, tag="thinking_delta"):
    thinking: str


class SignatureDelta(Struct, tag="signature_delta"):
    signature: str


class InputJsonDelta(Struct, tag="input_json_delta"):
    partial_json: str


class Event(Struct, tag_field="type"):
    """One event of a stream, by whose ``type`` it goes too."""


class MessageStart(Event, tag="message_start"):
    message: Message


class BlockStart(Event, tag="content_block_start"):
    index: int
    content_block: Block


class BlockDelta(Event, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(Event, tag="content_block_stop"):
    index: int


class Ending(Struct):
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class MessageDelta(Event, tag="message_delta"):
    """``usage`` has all counts anew."""

    delta: Ending
    usage: Usage


class MessageStop(Event, tag="message_stop"):
    pass


class TokenCount(Struct):
    input_tokens: int


class Model(Struct, kw_only=True):
    """``created_at`` is RFC 3339, lengths are in tokens, null of one that is not loaded."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(Struct, kw_only=True):
    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None
