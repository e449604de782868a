"""POST /completion and /infill, GET /props: what llama-server's clients send, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from llamafast.api.schema.fragments import MAX_TOP_LOGPROBS, GenerationOptions, OutputTokens
from llamafast.api.schema.timings import Timings
from llamafast.chat.infill import Chunk, InfillTask

StopType = Literal["none", "eos", "limit", "word"]
Milliseconds = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
MAX_RESPONSE_FIELDS = 64
_SERVED = ("n_probs", "return_tokens", "timings_per_token", "return_progress")


class NativeOptions(GenerationOptions, kw_only=True):
    """``response_fields`` are paths in the answer (``timings/prompt_n``), of which alone it is then made. Behind
    ``t_max_predict_ms`` an answer ends with its line, and before one that is indented by less than ``n_indent``. The
    fields from ``id_slot`` on say nothing here."""

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **{name: idle for name, idle in GenerationOptions.unserved.items() if name not in _SERVED},
        "return_token_ids": (False,),
        "n": (1,),
        "n_cmpl": (1,),
        "image_data": ([],),
        "messages": ([],),
        "echo": (False,),
        "logprobs": (False, 0),
        "top_logprobs": (0,),
    }

    n_predict: OutputTokens | None = None
    max_tokens: OutputTokens | None = None
    n_probs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    n_cmpl: int | None = None
    n_indent: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    image_data: Any = None
    messages: Any = None
    echo: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    t_max_predict_ms: Milliseconds | None = None
    response_fields: Annotated[list[str], Meta(max_length=MAX_RESPONSE_FIELDS)] | None = None

    id_slot: int | None = None
    n_keep: int | None = None
    t_max_prompt_ms: Milliseconds | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        yield from super().twins()
        yield self.under("n_predict", "max_tokens")

    def limited(self) -> dict[str, Any]:
        """The fields of a task that both endpoints read in the same way."""
        limit = self.max_tokens if self.n_predict is None else self.n_predict
        return {
            **self.task_fields(),
            "tell_tokens": bool(self.return_tokens),
            "names": {"max_tokens": "n_predict"},
            "max_tokens": None if limit is None or limit < 0 else limit,
            "top_logprobs": self.n_probs or None,
        }


class CompletionBody(NativeOptions, kw_only=True):
    """A prompt is a string, token ids, or texts and ids in a row."""

    prompt: str | list[str | int]


class Extra(Struct):
    text: str
    filename: str | None = None


class InfillBody(NativeOptions, kw_only=True):
    """``prompt`` is the line up to the gap, behind ``input_prefix``."""

    input_prefix: str
    input_suffix: str
    input_extra: list[Extra] | None = None
    prompt: str | None = None

    def task(self) -> InfillTask:
        fields = self.limited()
        names = {**fields.pop("names"), "prefix": "input_prefix", "suffix": "input_suffix"}
        return InfillTask(
            **fields,
            names=names,
            prefix=self.input_prefix + (self.prompt or ""),
            suffix=self.input_suffix,
            chunks=[Chunk(extra.text, extra.filename or "") for extra in self.input_extra or ()],
        )


class TokenProbability(Struct):
    id: int
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TokenProbability] | UnsetType = UNSET


class Piece(Struct, kw_only=True):
    """More of an answer that is streamed."""

    index: Literal[0] = 0
    content: str
    tokens: list[int]
    stop: bool = False
    id_slot: Literal[0] = 0
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[TokenProbability] | UnsetType = UNSET


class Answer(Piece, kw_only=True):
    """The whole one, or the end of a stream, where ``content`` is empty."""

    stop: bool = True
    model: str
    has_new_line: bool
    truncated: bool = False
    stop_type: StopType
    stopping_word: str
    tokens_cached: int
    timings: Timings


class GenerationSettings(Struct):
    """``params`` are the sampling that a request gets which asks for nothing else."""

    n_ctx: int
    params: dict[str, Any]


class Props(Struct, kw_only=True):
    """What a client may know of the server; ``model_path`` is the model's name."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str
