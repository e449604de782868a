"""The section ``model`` of cfg.json: one model, its context, what comes with it and what media clients may send.

Names are llama.h's where llama.h has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from llamafast.config.fields import (
    Bytes,
    FilePath,
    Int,
    Natural,
    Positive,
    PositiveBytes,
    Real,
    Seconds,
    Section,
    Text,
    Threads,
    ascii_host,
    is_quantised,
)
from llamafast.config.llama_params import ContextConfig
from llamafast.config.names import is_pattern


class FromPretrained(Section, frozen=True, kw_only=True):
    """A file of a Hugging Face repository. ``filename`` and ``additional_files`` may be globs (``* ? [ ]``).

    ``local_dir_use_symlinks`` has no effect: huggingface-hub dropped the choice, and old files still name it.
    """

    repo_id: Text
    filename: Text
    additional_files: tuple[Text, ...] | None = None
    local_dir: FilePath | None = None
    local_dir_use_symlinks: bool | Literal["auto"] = "auto"
    cache_dir: FilePath | None = None


class FromPackage(Section, frozen=True, kw_only=True):
    """A file of an installed Python package, named by distribution or import name.

    ``filename`` is relative to the import package and may be a glob.
    """

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\Z")]
    filename: Text


DraftModel = Literal["prompt-lookup-decoding", "draft-mtp", "draft-simple"]

# What the core has room for beside one another.
MAX_LORAS = 16

ModelSource: TypeAlias = str | FromPretrained | FromPackage


def _sources(section: Section, prefix: str) -> dict[str, ModelSource]:
    keys = (f"{prefix}path", f"{prefix}from_pretrained", f"{prefix}from_package")
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def _source_conflicts(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    if len(_sources(section, prefix)) != 1:
        yield "", f"exactly one of {prefix}path, {prefix}from_pretrained and {prefix}from_package must be set"


class LoraConfig(Section, frozen=True, kw_only=True):
    """One adapter. Without a ``name`` every request has it, with the weight ``scale``; with one those that ask for it,
    by that name as their model, and with ``default`` all others too."""

    path: FilePath | None = None
    from_pretrained: FromPretrained | None = None
    from_package: FromPackage | None = None
    scale: Real = 1.0
    name: Text | None = None
    default: bool = False

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from _source_conflicts(self, "")
        if self.default and self.name is None:
            yield "default", "an adapter without a name is every request's already"

    @property
    def source(self) -> ModelSource:
        """Where the adapter comes from."""
        (source,) = _sources(self, "").values()
        return source


class EmbeddingCacheConfig(Section, frozen=True, kw_only=True):
    """A directory for the embeddings of media."""

    path: FilePath
    max_bytes: Bytes


class MtmdConfig(Section, frozen=True, kw_only=True):
    """The multimodal projector and what clients may send it. Sizes are for one item, ``max_media`` for a request,
    ``fetched_max_bytes`` for all that requests in progress had fetched or read from files (null: 1 GiB, or room for two
    items).

    ``cache_ram_bytes``: host memory for rows that were encoded, beside those that requests wait with.
    ``image_max_tokens``: most rows that a projector of pictures of any size makes of one. ``threads`` encode (null: as
    many as compute, or where these leave CPUs to others so many). Encoding one may take ``encode_max_seconds`` of CPU;
    until all of a request are fetched and laid out ``load_max_seconds`` may pass.

    ``allowed_media_domains`` null or empty allows every host. Hosts whose address is not the public Internet's are
    asked only where that list names them, or all with ``allow_private_media``.
    """

    mmproj_path: FilePath | None = None
    mmproj_from_pretrained: FromPretrained | None = None
    mmproj_from_package: FromPackage | None = None
    embedding_cache: EmbeddingCacheConfig | None = None
    allowed_media_domains: tuple[Text, ...] | None = None
    allow_private_media: bool = False
    allowed_local_media_path: FilePath | None = None
    batch_max_tokens: Positive = 1024
    image_max_bytes: PositiveBytes = 20 * 2**20
    audio_max_bytes: PositiveBytes = 100 * 2**20
    video_max_bytes: PositiveBytes = 512 * 2**20
    image_max_pixels: Positive = 50_000_000
    image_max_tokens: Positive = 4096
    audio_max_seconds: Seconds = 1800.0
    video_max_seconds: Seconds = 600.0
    video_max_frames: Positive = 256
    max_media: Positive = 32
    fetched_max_bytes: PositiveBytes | None = None
    cache_ram_bytes: Bytes = 256 * 2**20
    encode_max_seconds: Seconds = 600.0
    threads: Threads | None = None
    image_timeout_seconds: Seconds = 10.0
    load_max_seconds: Seconds = 120.0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from _source_conflicts(self, "mmproj_")
        if self.fetched_most < self._item_max_bytes:
            yield "fetched_max_bytes", "must be as large as one item may be"
        for name in self.allowed_media_domains or ():
            try:
                ascii_host(name)
            except UnicodeError:
                yield "allowed_media_domains", f"{name} is not the name of a host"

    @property
    def fetched_most(self) -> int:
        return self.fetched_max_bytes or max(2**30, 2 * self._item_max_bytes)

    @property
    def _item_max_bytes(self) -> int:
        return max(self.image_max_bytes, self.audio_max_bytes, self.video_max_bytes)

    @property
    def source(self) -> ModelSource:
        """Where the projector comes from."""
        (source,) = _sources(self, "mmproj_").values()
        return source


class FimConfig(Section, frozen=True, kw_only=True):
    """The texts of the tokens by which a model fills in, where its GGUF does not say; "": it has no such token."""

    prefix: Text | None = None
    suffix: Text | None = None
    middle: str | None = None
    pad: str | None = None
    repository: str | None = None
    file: str | None = None


class ModelConfig(ContextConfig, frozen=True, kw_only=True):
    """One model and its context. Names are llama.h's where llama.h has one."""

    path: FilePath | None = None
    from_pretrained: FromPretrained | None = None
    from_package: FromPackage | None = None
    alias: Text | None = None
    aliases: tuple[Text, ...] = ()  # more names of it for clients; * stands for any characters
    load: Literal["startup", "on_demand"] = "startup"
    ttl_seconds: Seconds | None = None  # without a request, until its memory is given back
    memory_bytes: PositiveBytes | None = None  # what a pool counts it as; null: what it took the last time
    chat_template: str | tuple[str, ...] | None = None
    dialect: Text | None = None  # how the model writes tool calls and reasoning; null: its template tells
    response_schema: dict[str, Any] | None = None
    response_template: dict[str, Any] | None = None
    fim_tokens: FimConfig | None = None
    spm_infill: bool = False  # what is behind the gap comes first
    loras: tuple[LoraConfig, ...] = ()  # at most MAX_LORAS
    max_loras: Annotated[int, Meta(ge=1, le=MAX_LORAS)] = 4  # sets of adapters that run at once; others wait
    mtmd: MtmdConfig | None = None

    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None

    n_ctx: Natural | None = None  # 0 or null: what the model was trained for
    n_batch: Positive | None = None
    n_ubatch: Positive | None = None
    n_seq_max: Annotated[int, Meta(ge=1, le=256)] | None = None  # LLAMA_MAX_SEQ
    threads: Threads | None = None
    threads_batch: Threads | None = None
    pooling_type: Literal[-1, 0, 1, 2, 3, 4] | None = None
    embedding: bool | None = None  # null: what the GGUF is made for
    rerank_by_cosine: bool = False  # let a model that embeds rank by the cosine of its vectors
    flash_attn: bool | None = None  # null: llama.cpp decides
    store_logits: bool = True  # no effect: log probabilities need no setting

    max_seq_len: Positive | None = None  # prompt and output of one request
    max_output_tokens: Natural | None = None

    draft_model: DraftModel | Literal["none"] | tuple[DraftModel, ...] | None = None  # null: what clients predict
    draft_model_path: FilePath | None = None
    draft_model_from_pretrained: FromPretrained | None = None
    draft_model_from_package: FromPackage | None = None
    draft_model_num_pred_tokens: Int = 16
    draft_model_max_ngram_size: Int = 2
    draft_model_top_k: Positive = 1
    draft_model_p_min: Annotated[float, Meta(ge=0, le=1)] = 0.0
    draft_model_max_batch_size: Positive | None = None
    draft_model_threads: Threads | None = None
    draft_model_threads_batch: Threads | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        yield from _source_conflicts(self, "")
        if self.flash_attn is False and is_quantised(self.type_v):
            yield "type_v", "one that is quantised needs flash_attn"
        if self.alias is not None and is_pattern(self.alias):
            yield "alias", "is the model's own name, not a pattern: those go to aliases"
        if self.response_schema is not None and self.response_template is not None:
            yield "", "at most one of response_schema and response_template may be set"
        if len(self.loras) > MAX_LORAS:
            yield "loras", f"at most {MAX_LORAS} adapters are served"
        names = [lora.name for lora in self.loras if lora.name is not None]
        for name in sorted({name for name in names if names.count(name) > 1 or name in (self.alias, *self.aliases)}):
            yield "loras", f"{name} is the name of something else too"
        for name in sorted({name for name in self.aliases if self.aliases.count(name) > 1 or name == self.alias}):
            yield "aliases", f"{name} is there twice"
        drafts = _sources(self, "draft_model_")
        if len(drafts) > 1:
            yield "", f"at most one of {' and '.join(drafts)} may be set"
        if "draft-simple" in (self.drafts or ()) and not drafts:
            keys = "draft_model_path, draft_model_from_pretrained and draft_model_from_package"
            yield "draft_model", f"draft-simple needs one of {keys}: a small model of the same vocabulary"
        if "draft-mtp" in (self.drafts or ()) and self.n_batch is not None:
            least = self.draft_model_num_pred_tokens + 1
            if self.n_batch < least:
                yield "n_batch", f"draft-mtp needs at least draft_model_num_pred_tokens + 1 = {least}"

    @property
    def comes_and_goes(self) -> bool:
        """Whether it is in memory only while somebody uses it: then it has a process of its own."""
        return self.ttl_seconds is not None or self.load == "on_demand"

    @property
    def source(self) -> ModelSource:
        """Where the model comes from."""
        (source,) = _sources(self, "").values()
        return source

    @property
    def drafts(self) -> tuple[DraftModel, ...] | None:
        """Who drafts, () for nobody; None where the config leaves it open."""
        if self.draft_model is None or isinstance(self.draft_model, tuple):
            return self.draft_model
        return () if self.draft_model == "none" else (self.draft_model,)

    @property
    def draft_source(self) -> ModelSource | None:
        """Where a separate draft model comes from."""
        return next(iter(_sources(self, "draft_model_").values()), None)

    @property
    def has_draft_model(self) -> bool:
        """Whether a small model drafts."""
        return "draft-simple" in (self.drafts or ()) and self.draft_model_num_pred_tokens > 0

    @property
    def draft_file(self) -> ModelSource | None:
        """The same, where somebody drafts by it: a small model, or else a head."""
        return self.draft_source if self.has_draft_model or "draft-mtp" in (self.drafts or ()) else None

    @property
    def chat_template_text(self) -> str | None:
        """The template in one piece."""
        return "".join(self.chat_template) if isinstance(self.chat_template, tuple) else self.chat_template
