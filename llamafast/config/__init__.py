"""The shape of cfg.json: names, types, defaults and ranges; ``conflicts`` holds what one field alone cannot say.

``llamafast.config_file`` reads a file into these frozen structs and enforces both. A key that may be ``null`` means
llama.h's or the engine's default then. Relative paths are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from llamafast.config.fields import Bytes, Positive, Section, Text, ascii_host
from llamafast.config.model import (
    MAX_LORAS,
    EmbeddingCacheConfig,
    FromPackage,
    FromPretrained,
    LoraConfig,
    ModelConfig,
    ModelSource,
    MtmdConfig,
)
from llamafast.config.server import ResponsesConfig, ServerConfig

__all__ = [
    "MAX_LORAS",
    "CacheConfig",
    "Config",
    "DiskCacheConfig",
    "EmbeddingCacheConfig",
    "FromPackage",
    "FromPretrained",
    "LoraConfig",
    "ModelConfig",
    "ModelSource",
    "MtmdConfig",
    "ResponsesConfig",
    "SchedulerConfig",
    "Section",
    "ServerConfig",
    "ascii_host",
]

# Scanning a text of this length keeps every thread from Python for 40 ms, and a data URL of 20 MiB fits.
MAX_BODY_BYTES = 24 * 2**20


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """``target_itl_ms``: how long a prompt may hold running answers up between two tokens (null: 1.6 times as long as
    without it, or 75). ``prefill_chunk``: most prompt tokens in one step that also decodes, instead of that.
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
