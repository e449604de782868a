"""The nouns that cross the engine's door. Imports nothing of ours but those of parts of it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from struct import iter_unpack
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

from llamafast.engine.activity import Observed
from llamafast.engine.adapter_info import AdaptersPort
from llamafast.engine.embedding_info import EmbeddingInfo, EmbeddingPlan
from llamafast.engine.media import MediaKind, MediaSpan
from llamafast.engine.model_facts import FimTokens, Weights
from llamafast.engine.reasoning import ReasoningBudget

FinishReason = Literal["stop", "length"]


# A stage for texts that are filled in, which nobody gets who does not ask for it.
INFILL_STAGE = "infill"


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How the next token is chosen: the logit bias, then the stages of ``samplers`` in their order, then a draw.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p``, ``typical_p`` and ``repetition_penalty`` 1 and what else is 0
    switch a stage off, as do ``top_n_sigma`` below 0 and ``xtc_threshold`` above 0.5. Penalties look at the last
    ``penalty_last_n`` tokens of prompt and output, DRY at ``dry_penalty_last_n`` (-1: all of them). ``mirostat`` 1 or 2
    takes the place of whatever truncates. ``seed`` None draws a fresh one per request; choice ``k`` uses ``seed + k``.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    samplers: tuple[str, ...] = (
        "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"
    )  # fmt: skip
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


class Matcher(Protocol):
    """A compiled grammar at its start. The engine walks copies; what else it has to have is llguidance.LLMatcher's."""

    def deep_copy(self) -> Matcher: ...


class OutputOptions(Struct, frozen=True, kw_only=True):
    """What goes from a client's task to the core's Sequence as it stands, by the same names. ``ignore_eos`` lets
    generation run through end-of-generation tokens; neither they nor stop tokens can come before ``min_tokens``. With
    ``tell_tokens`` each Event has the ids of its tokens, with ``tell_progress`` steps tell how much of a prompt is
    computed. Only where it is ``speculative`` tokens are drafted."""

    min_tokens: int = 0
    keep_stop: bool = False
    ignore_eos: bool = False
    tell_tokens: bool = False
    tell_progress: bool = False
    speculative: bool = True

    def output_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OutputOptions.__struct_fields__}


class Plan(OutputOptions, frozen=True, kw_only=True):
    """What one request wants generated: ``n`` choices for each prompt.

    ``prompts`` are arrays of int32 token ids, at least one id each. ``max_tokens`` bounds the output of one choice
    (None: as much as fits; 0: the prompt is computed). ``stop`` strings end a choice and, unless ``keep_stop``, are no
    part of it. With ``skip_special_tokens`` control tokens leave no text, but for those whose ids are in
    ``preserved_tokens``. ``stop_token_ids`` end it too and leave no text. With ``top_logprobs`` every Event has the log
    probabilities of its tokens and so many alternatives; with ``prompt_logprobs`` those of the prompt come too, which
    is computed whole. ``matcher`` is a grammar that every choice follows. Of a tenant's requests those with a lower
    ``priority`` run first and give way last. Only requests of one ``cache_salt``, of tenants of one salt, share what
    they computed; without ``cache_prompt`` its choices do among themselves. ``model`` may name an adapter, ``lora`` has
    more, by id and scale. ``checkpoints`` are lengths at which later prompts may part from this one: there a state that
    cannot be cut is kept. ``media`` are the spans of rows in the one prompt there is then. ``announce`` tells by an
    Event how much of a long prompt was cached. ``budget`` bounds thoughts; answers may repeat ``prediction``.
    """

    prompts: tuple[array[int], ...]
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    preserved_tokens: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    matcher: Matcher | None = None
    priority: int = 0
    cache_salt: str = ""
    cache_prompt: bool = True
    model: str = ""
    lora: tuple[tuple[int, float], ...] = ()
    checkpoints: tuple[int, ...] = ()
    media: tuple[MediaSpan, ...] = ()
    announce: bool = False
    budget: ReasoningBudget | None = None
    prediction: array[int] = array("i")

    def media_tokens(self) -> dict[MediaKind, int]:
        """Rows of the prompt by their kind of media."""
        rows: Counter[MediaKind] = Counter()
        for span in self.media:
            rows[span.medium.kind] += span.rows.n_rows
        return dict(rows)


class Tenant(Struct, frozen=True):
    """Who asks; ``name`` tells tenants apart, "" is anybody.

    Only tenants of one ``salt`` share what they computed. Answers for a tenant with a lower ``priority`` run first,
    whatever their requests' own; embeddings take turns. At most ``max_running`` of its sequences run at once, and as
    many of its inputs are embedded at once (at least 1; None: no bound); the others wait and hold nobody else up.
    """

    name: str = ""
    salt: str = ""
    priority: int = 0
    max_running: int | None = None


ANYBODY = Tenant()


class Alternatives(Struct, frozen=True, gc=False):
    """The most likely tokens in a token's place with their log probabilities, as the core packs them: pairs of int32
    and float32, where ids below 0 are no tokens. As objects a million of them, which some prompts have, would cost the
    garbage collector a tenth of a second."""

    packed: bytes

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return (pair for pair in iter_unpack("if", self.packed) if pair[0] >= 0)


class TokenLogprob(NamedTuple):
    """A token, its log probability and the most likely tokens in its place with theirs: of the model's distribution,
    before bias, penalties, temperature and truncation. ``rank``, 1 for the likeliest, is known of prompts."""

    token: int
    logprob: float
    top: Iterable[tuple[int, float]]
    rank: int = 0


class Event(Struct, gc=False):
    """What one or more steps tell about one choice. ``index`` is ``prompt_index * n + k``.

    ``text`` is what became certain (never half a character, never part of a stop string), ``n_tokens`` how many
    tokens were generated since the previous Event of this choice, the end-of-generation token included. ``logprobs``
    are those of the tokens that ``text`` consists of (tokens without text have none), ``prompt_logprobs`` those of the
    prompt from its second token on; None where nobody asked. ``matched_stop`` is the stop string or the stop token's id
    that ended it, None where the model ended by itself. ``token_ids`` are those of its ``n_tokens`` tokens.
    """

    index: int
    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    matched_stop: str | int | None = None
    token_ids: list[int] | None = None


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What the layers above may know of the loaded model. Lengths are in tokens, ``n_seq_max``
    sequences may run at once, ``longest_piece`` is the most bytes of text that one token can stand for,
    ``control_tokens`` the texts of control tokens. ``chat_template`` and ``tool_use_template``, for conversations with
    tools, are the GGUF's own. ``sampling`` is what a request gets that asks for nothing else. ``embedding`` is None for
    a model that does not embed. Where memory ``cuts_anywhere``, what prompts share is reused wherever they part, else
    only up to a checkpoint. ``modalities`` are what it takes beside text, ``adapters`` the names of those that there
    are now, ``aliases`` further names and patterns of them. A KV cell has about ``cell_bytes``."""

    id: str
    created: int
    n_vocab: int
    n_ctx_train: int
    max_seq_len: int
    n_seq_max: int
    max_output_tokens: int | None
    chat_template: str | None
    longest_piece: int
    bos_text: str
    eos_text: str
    description: str
    sampling: SamplingParams = SamplingParams()
    generates: bool = True
    embedding: EmbeddingInfo | None = None
    tool_use_template: str | None = None
    control_tokens: tuple[str, ...] = ()
    cuts_anywhere: bool = True
    modalities: tuple[MediaKind, ...] = ()
    fim: FimTokens = FimTokens()
    weights: Weights = Weights()
    adapters: Collection[str] = ()
    aliases: tuple[str, ...] = ()
    cell_bytes: float = 0.0

    @property
    def ranks(self) -> bool:  # whether vectors of this model are scores
        return self.embedding is not None and self.embedding.pooling == "rank"


class Vocabulary(Protocol):
    """The tokens as a grammar sees them; thread-safe."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def llama_pointers(self) -> tuple[int, int] | None:
        """The addresses of the llama_vocab and of what stands for llama_tokenize, where there are any."""

    def piece(self, token: int, /) -> bytes:
        """The bytes a token stands for, those of control tokens included. Raises IndexError."""

    def is_control(self, token: int, /) -> bool: ...

    def eog_tokens(self) -> list[int]:
        """The tokens that end generation."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        """Token ids (int32). ``add_special`` adds BOS/EOS where the model wants them; with ``parse_special``
        the text of control tokens becomes control tokens. Raises Untokenizable."""


class Tokenizer(Vocabulary, Protocol):
    """The vocabulary as ``chat`` sees it; thread-safe."""

    def detokenize(self, tokens: array[int]) -> str:
        """The text of a prompt, control tokens included; bytes that are not UTF-8 become U+FFFD."""

    def pair(self, first: array[int], second: array[int]) -> array[int]:
        """Two texts, tokenised with ``add_special``, as the one input that a ranking model reads."""

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it, "" for an id that does not exist."""


# Upper bounds of buckets, how many values fell into each (one more: beyond the last bound), and their sum.
Histogram = tuple[tuple[float, ...], list[int], float]


class Generation(Protocol):
    """The caller's end of a submitted Plan: an async iterator of batches of Events.

    Each batch holds at most one Event per choice; Events that pile up while the caller is away are merged. It ends when
    every choice has had its ``finish_reason``, or raises the ``LlamafastError`` that ended the request. Of the prompts'
    tokens ``processed_tokens`` are known to be computed, ``media_tokens`` are rows; ``drafted_tokens`` are those that
    were decoded, and those of them that came. Counts are final after the last.
    """

    prompt_tokens: int
    processed_tokens: int
    completion_tokens: int
    finish_reasons: set[FinishReason]
    media_tokens: dict[MediaKind, int]

    @property
    def drafted_tokens(self) -> tuple[int, int]: ...

    @property
    def predicted_tokens(self) -> tuple[int, int] | None: ...  # of the prediction: that came, and that did not

    @property
    def queue_seconds(self) -> float | None:
        """How long its choices waited before they ran, the longest wait; None while one waits."""

    @property
    def first_token_seconds(self) -> float | None:
        """From submit to the arrival of the first token; None before."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were taken from another request instead of being computed."""

    def __aiter__(self) -> Generation: ...

    async def __anext__(self) -> list[Event]: ...

    async def begin(self, seconds: float) -> None:
        """Return once something is known of an answer, or after so long. Raises the error that ended the request."""

    def cancel(self) -> None:
        """Stop generating; idempotent, a no-op once finished. Must be called when the caller gives up."""


class EnginePort(Observed, Protocol):
    """The engine's door as ``api`` and ``chat`` use it; the tests' fake implements it too."""

    info: ModelInfo
    tokenizer: Tokenizer
    adapters: AdaptersPort

    async def prepare(self, plan: Plan) -> None:
        """Do in a thread what ``submit`` would hold up the event loop for. Raises InvalidRequest."""

    def submit(self, plan: Plan, tenant: Tenant = ANYBODY) -> Generation:
        """Queue a Plan, better after ``prepare``. Call on the event loop.

        Raises QueueFull, EngineUnavailable, ContextLengthExceeded (a prompt longer than ``info.max_seq_len``) or
        InvalidRequest (an empty prompt, a token id out of range). The Generation raises QueueTimeout or AnswerTimeout
        where the config bounds how long requests may wait or take.
        """

    async def embed(self, plan: EmbeddingPlan, tenant: Tenant = ANYBODY) -> list[bytes]:
        """The vectors of each input, float32 one after another: one, or with the pooling none one a token. Raises
        what ``submit`` raises, or what ended the request; cancelling the caller's task ends the work."""

    def retry_after(self) -> float:
        """After how many seconds, 1 to 60, to try again: by then half of the requests that wait now probably run."""

    async def reset_prefix_cache(self) -> int:
        """Forget what finished requests computed and were told; how many bytes that freed. Raises EngineUnavailable."""

    def histograms(self) -> dict[str, Histogram]:
        """The current value of every distribution of ``llamafast.series``, by series key. Never waits for a step."""
