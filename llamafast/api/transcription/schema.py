"""POST /v1/audio/transcriptions and /v1/audio/translations: the fields of the form, reply, streamed event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from llamafast.api.schema.fragments import Penalty, Probability, RepetitionPenalty, StreamedText, Temperature
from llamafast.chat.languages import language_name
from llamafast.chat.request import ChatTask, Message
from llamafast.chat.transcription import Speech
from llamafast.engine.media import MediaSource, Medium
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Of a piece of at most half a minute nobody says more; a model that does repeats itself.
MAX_TOKENS = 1024
MAX_PROMPT, MAX_KEYWORDS, MAX_KEYWORD, MAX_LANGUAGES = 8192, 100, 100, 8
# Fields that a form may have several times.
LISTS = (
    "languages", "keywords", "timestamp_granularities", "include", "known_speaker_names", "known_speaker_references",
)  # fmt: skip

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
_STAMPED = ("srt", "vtt", "verbose_json")
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class TranscriptionRequest(Struct, kw_only=True):
    """A form's fields, all of them texts by then but for lists and objects of texts. Sampling beyond the temperature,
    and bounds of the output, are vLLM's.

    ``unserved`` and ``foreign`` are as in GenerationOptions.
    """

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {"include": ([],)}
    foreign: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("messages", "input"), "`file` and `prompt`"),
        **dict.fromkeys(("tools", "json_schema", "grammar"), "it to /v1/chat/completions, with the sound in a message"),
    }

    model: str | None = None
    language: str | None = None
    languages: Annotated[list[str], Meta(max_length=MAX_LANGUAGES)] | None = None
    prompt: Annotated[str, Meta(max_length=MAX_PROMPT)] | None = None
    keywords: Annotated[list[Annotated[str, Meta(max_length=MAX_KEYWORD)]], Meta(max_length=MAX_KEYWORDS)] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    chunking_strategy: str | dict[str, Any] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None

    timestamp_granularities: list[str] | None = None
    include: list[str] | None = None
    known_speaker_names: list[str] | None = None
    known_speaker_references: list[str] | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        """As in GenerationOptions."""
        yield {"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens}

    def check(self) -> None:
        """Raises UnsupportedParameter for what no model here tells: when something was said, and by whom."""
        if self.response_format in _STAMPED or self.timestamp_granularities:
            name = "timestamp_granularities" if self.timestamp_granularities else "response_format"
            told = f"`{name}`: no time stamps are told here; send `response_format` json or text"
            raise UnsupportedParameter(told, param=name)
        speakers = [name for name in ("known_speaker_names", "known_speaker_references") if getattr(self, name)]
        if self.response_format == "diarized_json" or speakers:
            name = speakers[0] if speakers else "response_format"
            told = f"`{name}`: speakers are not told apart here; send `response_format` json or text"
            raise UnsupportedParameter(told, param=name)
        if self.chunking_strategy not in (None, "auto"):
            told = "`chunking_strategy` is auto here: what is longer than half a minute is cut where it is quiet"
            raise UnsupportedParameter(told, param="chunking_strategy")

    def speech(self, *, translated: bool) -> Speech:
        """Raises InvalidRequest for a language that nobody knows."""
        if self.language is not None and self.languages:
            raise InvalidRequest("send one of `language` and `languages`", param="languages")
        names = [language_name(code, "languages") for code in self.languages or ()]
        if self.language is not None:
            names = [language_name(self.language, "language")]
        return Speech(tuple(dict.fromkeys(names)), self.prompt or "", tuple(self.keywords or ()), translated)

    def task(self, messages: list[Message], media: Sequence[Medium], sources: Sequence[MediaSource]) -> ChatTask:
        """The conversation about one piece: without thoughts, and the likeliest text where no temperature is sent."""
        said = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        return ChatTask(
            messages=messages,
            media=media,
            sources=sources,
            names={"messages": "file"},
            sampling={"temperature": 0.0, **said},
            max_tokens=self.max_completion_tokens or self.max_tokens or MAX_TOKENS,
            model=self.model or "",
            enable_thinking=False,
            reasoning_budget=0,
        )


class InputTokenDetails(Struct):
    audio_tokens: int
    text_tokens: int


class TranscriptionUsage(Struct):
    """Of all pieces together."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputTokenDetails
    type: Literal["tokens"] = "tokens"


class Transcription(Struct):
    text: str
    usage: TranscriptionUsage


class TextDelta(Struct, tag_field="type", tag="transcript.text.delta"):
    delta: StreamedText


class TextDone(Struct, tag_field="type", tag="transcript.text.done"):
    text: str
    usage: TranscriptionUsage
