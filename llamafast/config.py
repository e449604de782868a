"""The shape of cfg.json: names, types, defaults and ranges; ``conflicts`` holds what one field alone cannot say.

``llamafast.config_file`` reads a file into these frozen structs and enforces both.
Ranges are those of the C types behind the fields, so that no value can overflow or abort further down. A key that
may be ``null`` means llama.h's or the engine's default then. Relative paths are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
Int = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PositiveBytes = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Threads = Annotated[int, Meta(ge=1, le=512)]  # GGML_MAX_N_THREADS
Real = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]  # a C float
Seconds = Annotated[float, Meta(gt=0)]
# The ggml types llama.cpp writes a KV cache in: F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL BF16. Others abort the process.
CacheType = Literal[0, 1, 2, 3, 6, 7, 8, 20, 30]
# What a browser sends in ``Origin``: a scheme and where it leads, nothing behind it. Desktop shells have schemes too.
Origin = Annotated[str, Meta(pattern=r"^(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]*)\Z")]
KvValue: TypeAlias = bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | str

# Scanning a text of this length keeps every thread from Python for 40 ms, and a data URL of 20 MiB fits.
MAX_BODY_BYTES = 24 * 2**20
KV_STRING_BYTES = 127  # char[128] in llama.h, with its closing NUL


class Section(Struct, frozen=True, kw_only=True):
    """One JSON object of the file."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """``(key, text)`` of what does not fit together; the key is empty when the section as a whole is at fault."""
        yield from ()


class FromPretrained(Section, frozen=True, kw_only=True):
    """A file of a Hugging Face repository. ``filename`` and ``additional_files`` may be globs (``* ? [ ]``).

    ``local_dir_use_symlinks`` has no effect: huggingface-hub dropped the choice, and old files still name it.
    """

    repo_id: Text
    filename: Text
    additional_files: tuple[Text, ...] | None = None
    local_dir: Text | None = None
    local_dir_use_symlinks: bool | Literal["auto"] = "auto"
    cache_dir: Text | None = None


class FromPackage(Section, frozen=True, kw_only=True):
    """A file of an installed Python package, named by distribution or import name.

    ``filename`` is relative to the import package and may be a glob.
    """

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?\Z")]
    filename: Text


ModelSource: TypeAlias = str | FromPretrained | FromPackage


def _sources(section: Section, prefix: str) -> dict[str, ModelSource]:
    keys = (f"{prefix}path", f"{prefix}from_pretrained", f"{prefix}from_package")
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def _source_conflicts(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    if len(_sources(section, prefix)) != 1:
        yield "", f"exactly one of {prefix}path, {prefix}from_pretrained and {prefix}from_package must be set"


class LoraConfig(Section, frozen=True, kw_only=True):
    """One adapter, applied to every request with the weight ``scale``."""

    path: Text | None = None
    from_pretrained: FromPretrained | None = None
    from_package: FromPackage | None = None
    scale: Real = 1.0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        return _source_conflicts(self, "")

    @property
    def source(self) -> ModelSource:
        """Where the adapter comes from."""
        (source,) = _sources(self, "").values()
        return source


class EmbeddingCacheConfig(Section, frozen=True, kw_only=True):
    """A directory for the embeddings of media."""

    path: Text
    max_bytes: Bytes


class MtmdConfig(Section, frozen=True, kw_only=True):
    """The multimodal projector and what clients may send it. Sizes are for one item.

    ``allowed_media_domains`` null or empty allows every host.
    """

    mmproj_path: Text | None = None
    mmproj_from_pretrained: FromPretrained | None = None
    mmproj_from_package: FromPackage | None = None
    embedding_cache: EmbeddingCacheConfig | None = None
    allowed_media_domains: tuple[Text, ...] | None = None
    allowed_local_media_path: Text | None = None
    batch_max_tokens: Positive = 1024
    image_max_bytes: PositiveBytes = 20 * 2**20
    audio_max_bytes: PositiveBytes = 100 * 2**20
    video_max_bytes: PositiveBytes = 512 * 2**20
    image_timeout_seconds: Seconds = 10.0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        return _source_conflicts(self, "mmproj_")

    @property
    def source(self) -> ModelSource:
        """Where the projector comes from."""
        (source,) = _sources(self, "mmproj_").values()
        return source


class ModelConfig(Section, frozen=True, kw_only=True):
    """One model and its context. Names are llama.h's where llama.h has one."""

    path: Text | None = None
    from_pretrained: FromPretrained | None = None
    from_package: FromPackage | None = None
    alias: Text | None = None
    chat_template: str | tuple[str, ...] | None = None
    dialect: Text | None = None  # how the model writes tool calls and reasoning; null: its template tells
    response_schema: dict[str, Any] | None = None
    response_template: dict[str, Any] | None = None
    loras: tuple[LoraConfig, ...] = ()
    mtmd: MtmdConfig | None = None

    n_gpu_layers: Int | None = None  # negative: all
    split_mode: Literal[0, 1, 2, 3] | None = None
    main_gpu: Int | None = None
    tensor_split: tuple[Annotated[float, Meta(ge=0, le=3.4e38)], ...] | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    kv_overrides: dict[str, KvValue] | None = None

    n_ctx: Natural | None = None  # 0 or null: what the model was trained for
    n_batch: Positive | None = None
    n_ubatch: Positive | None = None
    n_seq_max: Annotated[int, Meta(ge=1, le=256)] | None = None  # LLAMA_MAX_SEQ
    threads: Threads | None = None
    threads_batch: Threads | None = None
    rope_scaling_type: Literal[-1, 0, 1, 2, 3] | None = None
    pooling_type: Literal[-1, 0, 1, 2, 3, 4] | None = None
    attention_type: Literal[-1, 0, 1] | None = None
    embedding: bool | None = None  # null: what the GGUF is made for
    rerank_by_cosine: bool = False  # let a model that embeds rank by the cosine of its vectors
    rope_freq_base: Real | None = None
    rope_freq_scale: Real | None = None
    yarn_ext_factor: Real | None = None
    yarn_attn_factor: Real | None = None
    yarn_beta_fast: Real | None = None
    yarn_beta_slow: Real | None = None
    yarn_orig_ctx: Natural | None = None
    offload_kqv: bool | None = None
    flash_attn: bool | None = None  # null: llama.cpp decides
    op_offload: bool | None = None
    swa_full: bool | None = None
    no_perf: bool | None = None
    type_k: CacheType | None = None
    type_v: CacheType | None = None
    kv_unified: bool = True
    store_logits: bool = True  # no effect: log probabilities need no setting

    max_seq_len: Positive | None = None  # prompt and output of one request
    max_output_tokens: Natural | None = None

    draft_model: Literal["prompt-lookup-decoding", "draft-mtp"] | None = None
    draft_model_path: Text | None = None
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
        yield from _source_conflicts(self, "")
        if self.response_schema is not None and self.response_template is not None:
            yield "", "at most one of response_schema and response_template may be set"
        drafts = _sources(self, "draft_model_")
        if len(drafts) > 1:
            yield "", f"at most one of {' and '.join(drafts)} may be set"
        if self.draft_model == "draft-mtp" and self.n_batch is not None:
            least = self.draft_model_num_pred_tokens + 1
            if self.n_batch < least:
                yield "n_batch", f"draft-mtp needs at least draft_model_num_pred_tokens + 1 = {least}"
        for key, value in (self.kv_overrides or {}).items():
            if not 1 <= len(key.encode()) <= KV_STRING_BYTES or "\0" in key:
                yield "kv_overrides", f"a key must have 1 to {KV_STRING_BYTES} bytes and no NUL"
            elif isinstance(value, str) and (len(value.encode()) > KV_STRING_BYTES or "\0" in value):
                yield "kv_overrides", f"the value of {key} must have at most {KV_STRING_BYTES} bytes and no NUL"

    @property
    def source(self) -> ModelSource:
        """Where the model comes from."""
        (source,) = _sources(self, "").values()
        return source

    @property
    def draft_source(self) -> ModelSource | None:
        """Where a separate draft model comes from."""
        return next(iter(_sources(self, "draft_model_").values()), None)

    @property
    def chat_template_text(self) -> str | None:
        """The template in one piece."""
        return "".join(self.chat_template) if isinstance(self.chat_template, tuple) else self.chat_template


class ServerConfig(Section, frozen=True, kw_only=True):
    """The HTTP side.

    ``uds``: a Unix socket in place of ``host`` and ``port``. ``ssl_certfile`` and ``ssl_keyfile``, PEM files, turn TLS
    on; ``ssl_cert_reqs`` is Python's ``ssl.VerifyMode``: whether clients may (1) or must (2) have a certificate that an
    authority in ``ssl_ca_certs`` has signed.

    ``max_queue``: requests that may wait. ``max_body_bytes`` null: ``Config.max_body_bytes`` says. ``stall_seconds``:
    /ready and /healthz turn red when work waits and no step finished for that long. ``queue_seconds``: how long a
    request may wait before any of it begins, ``request_seconds``: how long it may take, waiting included; null: as long
    as it takes. ``drain_delay_seconds``: how long after SIGTERM, when /ready is red, new requests are still taken;
    ``drain_seconds``: how long running ones may take after that. ``request_log``: a line per request on stderr.
    ``metrics_aliases``: other servers whose metric names /metrics repeats. ``max_websockets`` are open at once, each
    for ``websocket_seconds`` at most; 0 switches upgrades off.

    ``api_key_file``: who may use the server (``llamafast.api.keys.Keys``). ``salt_by_key``: whether the prefix cache is
    kept apart by key. ``metrics_public``: whether /metrics needs no key. ``cors_origins``: whose web pages may use the
    server, ``*`` for all. ``allowed_hosts``: the names it answers to, a leading dot for all below one; null: those of
    this machine on loopback addresses, else any.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    uds: Text | None = None
    ssl_certfile: Text | None = None
    ssl_keyfile: Text | None = None
    ssl_keyfile_password: Text | None = None
    ssl_ca_certs: Text | None = None
    ssl_cert_reqs: Literal[0, 1, 2] = 0
    ssl_minimum_version: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.3"
    max_queue: Natural = 512
    max_body_bytes: PositiveBytes | None = None
    stall_seconds: Seconds = 60.0
    queue_seconds: Seconds | None = None
    request_seconds: Seconds | None = None
    drain_delay_seconds: Annotated[float, Meta(ge=0)] = 0.0
    drain_seconds: Annotated[float, Meta(ge=0)] = 20.0
    request_log: bool = True
    metrics_aliases: tuple[Literal["vllm"], ...] = ()
    max_websockets: Natural = 1024
    websocket_seconds: Seconds = 3600.0
    api_key_file: Text | None = None
    salt_by_key: bool = True
    metrics_public: bool = False
    cors_origins: tuple[Origin, ...] = ()
    allowed_hosts: tuple[Text, ...] | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.ssl_certfile is not None and self.ssl_keyfile is None:
            yield "ssl_certfile", "needs ssl_keyfile"
        if self.ssl_certfile is None:
            for key in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs", "ssl_cert_reqs"):
                if getattr(self, key):
                    yield key, "needs ssl_certfile"
            if self.ssl_minimum_version != "TLSv1.3":
                yield "ssl_minimum_version", "needs ssl_certfile"
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            yield "ssl_cert_reqs", "needs ssl_ca_certs"
        if self.ssl_ca_certs is not None and not self.ssl_cert_reqs:
            yield "ssl_ca_certs", "needs ssl_cert_reqs: 1 checks the certificates of clients that have one, 2 wants one"


class ResponsesConfig(Section, frozen=True, kw_only=True):
    """Responses that are kept to be continued or read again, in memory or in the SQLite file ``path``.

    ``max_count`` 0 keeps none.
    """

    max_count: Natural = 4096
    max_bytes: Bytes = 256 * 2**20
    max_age_seconds: Seconds = 86400.0
    path: Text | None = None


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """``target_itl_ms``: how long a prompt may hold running answers up between two tokens (null: 1.5 times as long as
    without it, or 300). ``prefill_chunk``: most prompt tokens in one step that also decodes, instead of that.
    ``disaggregate_prefill``: whether long prompts have a context of their own, with as much memory for the KV cache
    again (null: on a CPU, where sequences share one KV cache and a quarter of the available memory is enough).

    ``priorities``: whether requests may say how urgent they are.
    """

    prefill_chunk: Positive | None = None
    target_itl_ms: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    disaggregate_prefill: bool | None = None
    priorities: bool = False

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.prefill_chunk is not None and self.disaggregate_prefill:
            yield "", "prefill_chunk is for prompts that are not disaggregated"
        if self.prefill_chunk is not None and self.target_itl_ms is not None:
            yield "", "at most one of prefill_chunk and target_itl_ms may be set"


class CacheConfig(Section, frozen=True, kw_only=True):
    """``ram_bytes``: host memory for prefixes of finished requests; 0 is off, null a quarter of what is available."""

    ram_bytes: Bytes | None = None


class DiskCacheConfig(Section, frozen=True, kw_only=True):
    """A directory for sequence states; prompts below ``min_tokens`` are not kept."""

    path: Text
    max_bytes: Bytes
    min_tokens: Positive = 128


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    model: ModelConfig
    server: ServerConfig = ServerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    cache: CacheConfig = CacheConfig()
    responses: ResponsesConfig = ResponsesConfig()
    disk_cache: DiskCacheConfig | None = None

    @property
    def max_body_bytes(self) -> int:
        """The most bytes of a request's body: what the config says, or room for the longest prompts, and for the
        largest media in base64 where clients may send any."""
        if self.server.max_body_bytes is not None:
            return self.server.max_body_bytes
        mtmd = self.model.mtmd
        largest = 0 if mtmd is None else max(mtmd.image_max_bytes, mtmd.audio_max_bytes, mtmd.video_max_bytes)
        return max(MAX_BODY_BYTES, -(-largest * 4 // 3))
