"""The shape of cfg.json: names, types, defaults and ranges; ``conflicts`` holds what one field alone cannot say.

``llamafast.config_file`` reads a file into these frozen structs and enforces both. A key that may be ``null`` means
llama.h's or the engine's default then. Relative paths are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from llamafast.config.fields import Bytes, FilePath, Positive, Section, ascii_host, cache_type, cache_type_name
from llamafast.config.llama_params import NumaStrategy
from llamafast.config.model import (
    MAX_LORAS,
    EmbeddingCacheConfig,
    FimConfig,
    FromPackage,
    FromPretrained,
    LoraConfig,
    ModelConfig,
    ModelSource,
    MtmdConfig,
)
from llamafast.config.pool import PoolLimits
from llamafast.config.server import KEY_VARIABLE, KVEventsConfig, RequestLogConfig, ResponsesConfig, ServerConfig

__all__ = [
    "KEY_VARIABLE",
    "MAX_LORAS",
    "CacheConfig",
    "Config",
    "DiskCacheConfig",
    "EmbeddingCacheConfig",
    "FimConfig",
    "FromPackage",
    "FromPretrained",
    "KVEventsConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelSource",
    "MtmdConfig",
    "NumaStrategy",
    "PoolConfig",
    "PoolLimits",
    "RequestLogConfig",
    "ResponsesConfig",
    "SchedulerConfig",
    "Section",
    "ServerConfig",
    "ascii_host",
    "cache_type",
    "cache_type_name",
]

# Scanning a text of this length keeps every thread from Python for 40 ms, and a data URL of 20 MiB fits.
MAX_BODY_BYTES = 24 * 2**20


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """``target_itl_ms``: how long a prompt may hold running answers up between two tokens (null: 1.6 times as long as
    without it, or 60). ``prefill_chunk``: most prompt tokens in one step that also decodes, instead of that.
    ``disaggregate_prefill`` does nothing any more, and goes with the next version.

    ``priorities``: whether requests may say how urgent they are.
    """

    prefill_chunk: Positive | None = None
    target_itl_ms: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    disaggregate_prefill: bool | None = None
    priorities: bool = False

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.prefill_chunk is not None and self.target_itl_ms is not None:
            yield "", "at most one of prefill_chunk and target_itl_ms may be set"


class CacheConfig(Section, frozen=True, kw_only=True):
    """``ram_bytes``: host memory for prefixes of finished requests; 0 is off, null a quarter of what is available."""

    ram_bytes: Bytes | None = None


class DiskCacheConfig(Section, frozen=True, kw_only=True):
    """A directory for sequence states; prompts below ``min_tokens`` are not kept."""

    path: FilePath
    max_bytes: Bytes
    min_tokens: Positive = 128


_NO_EVENTS = "server.kv_events", "is for one model that stays: behind a router each worker has one"


class ServedConfig(Section, frozen=True, kw_only=True):
    """What a file says beside its models."""

    server: ServerConfig = ServerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    cache: CacheConfig = CacheConfig()
    responses: ResponsesConfig = ResponsesConfig()
    disk_cache: DiskCacheConfig | None = None


class Config(ServedConfig, frozen=True, kw_only=True):
    """The whole file, of one model. ``pool`` is for one that comes and goes."""

    model: ModelConfig
    pool: PoolLimits | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if not self.model.comes_and_goes:
            if self.pool is not None:
                yield "pool", "is for several models, or one with model.ttl_seconds or that is loaded on demand"
            if self.model.memory_bytes is not None:
                yield "model.memory_bytes", "is for several models, or one with ttl_seconds or that is loaded on demand"
        elif self.server.kv_events is not None:
            yield _NO_EVENTS

    @property
    def max_body_bytes(self) -> int:
        """The most bytes of a request's body: what the config says, or room for the longest prompts, and for the
        largest media in base64 where clients may send any."""
        return largest_body(self.server, self.model)


class PoolConfig(ServedConfig, frozen=True, kw_only=True):
    """The whole file, of several models, each in a process of its own."""

    models: tuple[ModelConfig, ...]
    pool: PoolLimits = PoolLimits()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if not self.models:
            yield "models", "at least one is needed"
        if self.server.kv_events is not None:
            yield _NO_EVENTS
        taken: dict[str, str] = {}
        for i, model in enumerate(self.models):
            loras = [lora.name for lora in model.loras]
            for name in {name for name in (model.alias, *model.aliases, *loras) if name is not None}:
                if (first := taken.setdefault(name, f"models[{i}]")) != f"models[{i}]":
                    yield f"models[{i}]", f"{name} is a name of {first} already"

    @property
    def max_body_bytes(self) -> int:
        """The most bytes of a body for any of the models."""
        return max(largest_body(self.server, model) for model in self.models)


def largest_body(server: ServerConfig, model: ModelConfig) -> int:
    if server.max_body_bytes is not None:
        return server.max_body_bytes
    mtmd = model.mtmd
    largest = 0 if mtmd is None else max(mtmd.image_max_bytes, mtmd.audio_max_bytes, mtmd.video_max_bytes)
    return max(MAX_BODY_BYTES, -(-largest * 4 // 3))
