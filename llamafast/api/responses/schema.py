"""POST /v1/responses: the request and the Response object."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llamafast.api.schema.fragments import MAX_TOP_LOGPROBS, PlatformOptions, ReasoningTokens, Usage
from llamafast.errors import LlamafastError, QueueFull

Status = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]
Metadata = Annotated[dict[str, str], Meta(max_length=16)]


class ReasoningOptions(Struct):
    """``effort`` goes to the chat template, ``max_tokens`` bounds the reasoning, as OpenRouter has it. Who asks for a
    ``summary`` gets the reasoning itself in its place too."""

    effort: str | None = None
    max_tokens: ReasoningTokens | UnsetType | None = UNSET
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(PlatformOptions, kw_only=True):
    """Items stay plain objects: they are checked where they become messages.

    ``max_tool_calls`` bounds the calls of OpenAI's own tools, as it does there, not those of functions. The fields from
    ``access_programs`` on are checked for their type and have no effect: they say nothing of the answer.
    """

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **PlatformOptions.unserved,
        "return_token_ids": (False,),
        "n": (1,),
        "background": (False,),
        "background_options": (),
        "conversation": (),
        "prompt": (),
        "context_management": ([],),
    }
    foreign: ClassVar[dict[str, str]] = {
        "messages": "`input`",
        "max_tokens": "`max_output_tokens`",
        "max_completion_tokens": "`max_output_tokens`",
        "response_format": "`text.format`",
        "verbosity": "`text.verbosity`",
        "reasoning_effort": "`reasoning.effort`",
        "logprobs": "`top_logprobs`",
        "functions": "`tools`",
        "function_call": "`tool_choice`",
    }

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    conversation: str | dict[str, Any] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[str] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None

    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Who names a number of alternatives wants them also without ``include``."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """Chat's counts under the names they have here. What is computed is kept as a matter of course, not written
        to a cache on demand, so ``cache_write_tokens`` is 0."""
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens, 0),
            usage.completion_tokens,
            OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
            usage.total_tokens,
        )


class ResponseError(Struct):
    """What ended a response that had begun. Clients know few codes here, and retry by them."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str

    @classmethod
    def of(cls, error: LlamafastError) -> ResponseError:
        return cls("rate_limit_exceeded" if isinstance(error, QueueFull) else "server_error", error.message)


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"]


class Response(Struct, kw_only=True):
    """Every key is always there, null where it says nothing."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Any]
    parallel_tool_calls: bool
    presence_penalty: float
    frequency_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class CompactionItem(Struct, kw_only=True):
    id: str
    type: Literal["compaction"] = "compaction"
    encrypted_content: str


class CompactedResponse(Struct, kw_only=True):
    """``output`` stands for the whole conversation."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[CompactionItem]
    usage: ResponseUsage


class DeletedResponse(Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class ItemList(Struct):
    """A page of items, newest first unless asked otherwise; each as JSON already."""

    data: list[Raw]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"
