"""POST /v1/completions: request, reply, streamed chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llamafast.api.schema.fragments import (
    MAX_TOP_LOGPROBS,
    SYSTEM_FINGERPRINT,
    GenerationOptions,
    OutputTokens,
    StopReason,
    StreamedIndex,
    StreamedText,
    TruncatedTokens,
    Usage,
)
from llamafast.api.schema.timings import Timings
from llamafast.chat.infill import InfillTask
from llamafast.chat.request import CompletionTask
from llamafast.engine.types import FinishReason
from llamafast.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
_SERVED = ("suffix", "return_progress", "timings_per_token", "prompt_logprobs")
_TO_CHAT = "the request to /v1/chat/completions"


class CompletionRequest(GenerationOptions, kw_only=True):
    """A prompt is a string, token ids, a list of strings or a list of lists of token ids. ``n_predict`` is
    llama-server's name for ``max_tokens``."""

    foreign: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("messages", "tools", "functions", "reasoning", "reasoning_effort", "verbosity"), _TO_CHAT),
        **dict.fromkeys(("input", "instructions", "previous_response_id", "conversation"), "all text in `prompt`"),
        **dict.fromkeys(("truncation", "context_management"), "a `prompt` that fits"),
        "max_completion_tokens": "`max_tokens`",
        "max_output_tokens": "`max_tokens`",
        "text": "`response_format`",
        "top_logprobs": "`logprobs`",
        "include": "`logprobs`",
    }

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        name: idle for name, idle in GenerationOptions.unserved.items() if name not in _SERVED
    }

    prompt: str | list[str | int | list[int]]
    max_tokens: OutputTokens | None = DEFAULT_MAX_TOKENS
    n_predict: OutputTokens | None = None
    truncate_prompt_tokens: TruncatedTokens | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        yield from super().twins()
        yield self.under("max_tokens", "n_predict")

    def infill(self) -> InfillTask | None:
        """What is wanted where there is a ``suffix``. Raises InvalidRequest where that does not go with the rest."""
        if not self.suffix:
            return None
        if not isinstance(self.prompt, str):
            raise InvalidRequest("`suffix` goes with one `prompt`, a string", param="suffix")
        for name, idle in (("echo", False), ("best_of", self.n or 1), ("truncate_prompt_tokens", None)):
            if getattr(self, name) not in (None, idle):
                raise InvalidRequest(f"`suffix` does not go with `{name}`", param="suffix")
        fields = self._limited()
        names = {**fields.pop("names"), "prefix": "prompt"}
        return InfillTask(**fields, names=names, prefix=self.prompt, suffix=self.suffix, top_logprobs=self.logprobs)

    def _limited(self) -> dict[str, Any]:
        max_tokens, names = self.max_tokens, {}
        if self.n_predict is not None:
            max_tokens, names["max_tokens"] = self.n_predict, "n_predict"
        limit = None if max_tokens is None or max_tokens < 0 else max_tokens
        return {**self.task_fields(), "names": names, "max_tokens": limit}

    def task(self) -> CompletionTask:
        return CompletionTask(
            **self._limited(),
            prompt=self.prompt,
            truncated=self.truncate_prompt_tokens,
            best_of=self.best_of,
            echo=bool(self.echo),
            adds_special=self.add_special_tokens is not False,
            top_logprobs=self.logprobs,
        )


class Logprobs(Struct):
    """Parallel lists; the first token of a prompt has no log probability. ``text_offset`` counts characters."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[Raw | None] = []  # objects, encoded already
    text_offset: list[int] = []

    def joined(self, other: Logprobs) -> Logprobs:
        return Logprobs(
            self.tokens + other.tokens,
            self.token_logprobs + other.token_logprobs,
            self.top_logprobs + other.top_logprobs,
            self.text_offset + other.text_offset,
        )


class CompletionChoice(Struct):
    text: StreamedText
    index: StreamedIndex
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    stop_reason: StopReason | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Raw | None] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The reply, and each chunk of a stream: there ``usage`` is null but in the last one, absent when not asked for.
    ``timings`` are the reply's; in chunks they, and ``prompt_progress``, are added by ``api.measured``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[CompletionChoice] | list[Raw]
    usage: Usage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
