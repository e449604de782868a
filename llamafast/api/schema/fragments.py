"""What the generation endpoints share on the wire: request options, usage, the error object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from llamafast.chat.sampling import MAX_STAGES
from llamafast.config import MAX_LORAS
from llamafast.engine.types import OutputOptions

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_BIASED_TOKENS = 1024
MAX_STOP_TOKENS = 128
MAX_BREAKERS = 16
MAX_TOP_LOGPROBS = 20
SYSTEM_FINGERPRINT = "fp_llamafast"
# The names under which clients bound reasoning: vLLM's, then llama-server's.
BUDGETS = ("thinking_token_budget", "reasoning_budget", "reasoning_budget_tokens", "thinking_budget_tokens")
# What to send in place of fields that are refused.
INSTEAD = {
    "return_tokens": "`return_token_ids`",
    "n_probs": "`logprobs`",
    "bad_words": "`logit_bias`",
    "allowed_token_ids": "`logit_bias`, or a grammar",
    "ebnf": "`grammar`",
    **{
        name: f"`{name}` to /v1/chat/completions"
        for name in ("timings_per_token", "return_progress", "prompt_logprobs")
    },
    "n_predict": "`max_tokens`",
    **dict.fromkeys(BUDGETS, "`thinking.budget_tokens`"),
    "enable_thinking": "`thinking`",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "the answer's beginning as the last turn"),
    "truncate_prompt_tokens": "a text that fits",
    "documents": "blocks of the type document",
    "image_data": "images to /v1/chat/completions",
    "messages": "`prompt`, or the request to /v1/chat/completions",
    "echo": "`echo` to /v1/completions",
    **dict.fromkeys(("logprobs", "top_logprobs"), "`n_probs`"),
    "context_management": "`truncation`, or the conversation to /v1/responses/compact",
}

Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Scale = Annotated[float, Meta(ge=-8, le=8)]
# Any positive number in OpenAI-like servers; beyond these bounds a penalised logit would leave float32.
# Nor do these have bounds of their own elsewhere.
Amount = Annotated[float, Meta(ge=-1e6, le=1e6)]
Window = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
RepetitionPenalty = Annotated[float, Meta(ge=1e-6, le=1e6)]

CacheSalt = Annotated[str, Meta(min_length=1, max_length=1024)]

_SAMPLING_NAMES = {"repeat_penalty": "repetition_penalty", "repeat_last_n": "penalty_last_n"}
# llama-server's letters and further names for the stages of ``samplers``.
_STAGE_NAMES = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "typical_p": "typ_p",
    "typical": "typ_p",
    "temp": "temperature",
}
# What fields of OutputOptions are called by clients, where that is not their own name.
_OUTPUT_NAMES = {
    "keep_stop": "include_stop_str_in_output",
    "tell_tokens": "return_token_ids",
    "tell_progress": "return_progress",
}
# The fields of a request that constrain its text.
CONSTRAINTS = (
    "response_format", "json_schema", "grammar", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "guided_whitespace_pattern",
)  # fmt: skip

# In a streamed chunk, text and index may be holes that ``api.sse.frame_pieces`` cuts out of the encoded chunk.
StreamedText = str | Raw
StreamedIndex = int | Raw
# vLLM's: the stop string or the stop token's id that ended a choice, null where none did; absent before its end.
StopReason = str | int


# How many tokens there may be: below 0 any number, with 0 only the prompt is computed.
OutputTokens = Annotated[int, Meta(ge=-2)]
# Of a prompt the last tokens; -1: as many as fit.
TruncatedTokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
# How many tokens of reasoning there may be; -1: any number.
ReasoningTokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]


class StreamOptions(Struct):
    """``stream_options``. Obfuscation pads OpenAI's frames; asking for it is allowed, nothing is padded here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingOptions(Struct, kw_only=True):
    """How tokens are chosen, by the names of SamplingParams, and by those that llama-server has for two of its fields;
    null is the model's default."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    typical_p: Probability | None = None
    top_n_sigma: Amount | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dynatemp_range: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    dynatemp_exponent: Amount | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Amount | None = None
    mirostat_eta: Amount | None = None
    repeat_last_n: Window | None = None
    dry_multiplier: Amount | None = None
    dry_base: Annotated[float, Meta(ge=1, le=1e6)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[list[str], Meta(max_length=MAX_BREAKERS)] | None = None
    samplers: str | list[str] | None = None
    logit_bias: (
        Annotated[dict[str, Bias | bool], Meta(max_length=MAX_BIASED_TOKENS)]
        | Annotated[list[tuple[int | str, Bias | bool]], Meta(max_length=MAX_BIASED_TOKENS)]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """What is said, by the names of SamplingParams and of its stages."""
        said = {name: getattr(self, name) for name in SamplingOptions.__struct_fields__}
        said = {name: value for name, value in said.items() if value is not None}
        if self.samplers is not None:
            said["samplers"] = [_STAGE_NAMES.get(name, name) for name in self.samplers[: MAX_STAGES + 1]]
        renamed = {name: said.pop(other) for other, name in _SAMPLING_NAMES.items() if other in said}
        return renamed | said


class LoraScale(Struct, kw_only=True):
    """One adapter of the server's, by its place in the config, and how much of it: not so much that halves overflow."""

    id: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    scale: Scale


LoraScales = Annotated[list[LoraScale], Meta(max_length=MAX_LORAS)]


def pairs_of(scales: list[LoraScale] | None) -> tuple[tuple[int, float], ...]:
    """As a plan has them."""
    return tuple((one.id, one.scale) for one in scales or ())


class GenerationOptions(SamplingOptions, kw_only=True):
    """The request fields that completions and chat have in common; null means the default everywhere.

    ``unserved`` names the declared fields that this server refuses, each with the values that ask for nothing
    (null asks for nothing everywhere). ``foreign`` names fields of other endpoints of OpenAI's that would change an
    answer, each with what to send here. Without ``cache_prompt``, as llama-server has it, nothing is reused and nobody
    finds what was computed.
    """

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        "return_tokens": (False,),
        "timings_per_token": (False,),
        "return_progress": (False,),
        "use_beam_search": (False,),
        "length_penalty": (1,),
        "logits_processors": ([],),
        "bad_words": ([],),
        "allowed_token_ids": ([],),
        "ebnf": ("",),
        "return_hidden_states": (False,),
        "n_probs": (0,),
        "post_sampling_probs": (False,),
        "prompt_logprobs": (),
        "suffix": ("",),
        "modalities": ([], ["text"]),
        "audio": (),
        "web_search_options": (),
        "moderation": ({},),
    }
    foreign: ClassVar[dict[str, str]] = {}

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    ignore_eos: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    speculative: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None
    cache_prompt: bool | None = None
    skip_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | bool | None = None
    grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    return_token_ids: bool | None = None
    return_tokens: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    logits_processors: list[Any] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    ebnf: str | None = None
    regex: str | None = None
    return_hidden_states: bool | None = None
    n_probs: int | None = None
    post_sampling_probs: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    lora: LoraScales | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        """The names that one thing has in a request, the first one first, and what is said by each."""
        yield self.under("repetition_penalty", "repeat_penalty")
        yield self.under("guided_regex", "regex")

    def under(self, *names: str) -> dict[str, Any]:
        """What is said in the fields of these names."""
        return {name: getattr(self, name) for name in names}

    @property
    def wants_usage(self) -> bool:
        """Whether the stream is to end with a chunk of ``usage``."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def task_fields(self) -> dict[str, Any]:
        """The fields of a ``chat.request.Task`` that all endpoints read in the same way."""
        constraints = {name: getattr(self, name) for name in CONSTRAINTS}
        if self.regex:  # SGLang's name for it
            constraints["guided_regex"] = self.regex
        options = {name: getattr(self, _OUTPUT_NAMES.get(name, name)) for name in OutputOptions.__struct_fields__}
        return {
            **{name: value for name, value in options.items() if value is not None},
            "tell_progress": bool(self.stream and self.return_progress),
            "sampling": self.sampling,
            "constraints": {name: value for name, value in constraints.items() if value is not None},
            "n": self.n or 1,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop or (),
            "stop_token_ids": self.stop_token_ids or (),
            "skip_special_tokens": self.skip_special_tokens is not False,
            "priority": self.priority or 0,
            "cache_salt": self.cache_salt or "",
            "cache_prompt": self.cache_prompt is not False,
            "model": self.model or "",
            "lora": pairs_of(self.lora),
            "prompt_logprobs": self.prompt_logprobs,
        }


class PlatformOptions(GenerationOptions, kw_only=True):
    """What chat and responses take of OpenAI's own platform: who asks, prices and hints, of which no answer depends;
    checked for its type, no effect beyond an echo. Choices that are generated to be dropped, and prompts in the answer,
    are for completions alone."""

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **GenerationOptions.unserved,
        "best_of": (1,),
        "echo": (False,),
    }

    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    best_of: int | None = None
    echo: bool | None = None


class PromptTokensDetails(Struct):
    """Tokens that media became are told where there are any."""

    cached_tokens: int
    audio_tokens: int | UnsetType = UNSET
    image_tokens: int | UnsetType = UNSET
    video_tokens: int | UnsetType = UNSET


class CompletionTokensDetails(Struct):
    """Where a prediction was sent, its tokens that came and that did not are told."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int | UnsetType = UNSET
    rejected_prediction_tokens: int | UnsetType = UNSET


class Usage(Struct):
    """Token counts of one request: each prompt once, all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ErrorObject(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """OpenAI's error reply; in a stream, the payload of the last event."""

    error: ErrorObject
