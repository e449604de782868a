"""What of a pool's config is whose: one cfg.json for each child.

A model's own are its entry and ``scheduler``. The parent's own are where it listens, keys, origins and the limits of
connections. What is divided: ``cache.ram_bytes`` and ``disk_cache.max_bytes``, evenly, loaded or not, so that a model
that comes takes nothing from the others. What is shared: the database of responses.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec
from msgspec.structs import replace

from llamafast.config import (
    Config,
    DiskCacheConfig,
    FromPackage,
    FromPretrained,
    ModelConfig,
    PoolConfig,
    PoolLimits,
    ServerConfig,
)
from llamafast.config.names import is_pattern
from llamafast.errors import ConfigError, ModelLoadError
from llamafast.model_files import find_model
from llamafast.pool.children import IDLE_SECONDS

# A child's own limits that are not to be met before the parent's.
_LONG_SECONDS = 1e8


def pool_of(config: Config) -> PoolConfig:
    """A pool of one model."""
    return PoolConfig(
        models=(config.model,),
        pool=config.pool or PoolLimits(),
        server=config.server,
        scheduler=config.scheduler,
        cache=config.cache,
        responses=config.responses,
        disk_cache=config.disk_cache,
    )


def named(config: PoolConfig) -> PoolConfig:
    """The same with an alias for every model: the name of its file where it has none. Raises ConfigError where that
    cannot be told yet, or is the name of something else."""
    models = tuple(replace(model, alias=model.alias or _file_name(model, i)) for i, model in enumerate(config.models))
    whole = replace(config, models=models)
    faults = [f"{key}: {text}" for section in (whole, *models) for key, text in section.conflicts()]
    if faults:
        raise ConfigError("\n".join(faults))
    return whole


def _file_name(model: ModelConfig, place: int) -> str:
    source = model.source
    try:
        if (path := find_model(source)) is not None:
            return path.name
    except (ConfigError, ModelLoadError):
        pass  # who loads it will tell
    name = source.filename if isinstance(source, (FromPretrained, FromPackage)) else source
    if re.search(r"[*?\[]", name) or is_pattern(name):
        raise ConfigError(f"models[{place}].alias: is needed, as the name of the file is not known before it is there")
    return Path(name).name


def child_config(config: PoolConfig, model: ModelConfig, socket: Path, responses: Path, ram_bytes: int) -> bytes:
    """The cfg.json of ``model``'s child, which listens on ``socket``. ``ram_bytes`` are those of all models together,
    ``responses`` is their database."""
    n_models = len(config.models)
    disk = config.disk_cache
    if disk is not None:
        disk = replace(disk, path=str(disk_folder(disk, model)), max_bytes=disk.max_bytes // n_models)
    own = Config(
        model=replace(model, load="startup", ttl_seconds=None, memory_bytes=None),
        server=_child_server(config, socket),
        scheduler=config.scheduler,
        cache=replace(config.cache, ram_bytes=ram_bytes // n_models),
        responses=replace(config.responses, path=str(responses)),
        disk_cache=disk,
    )
    return msgspec.json.encode(own)


def disk_folder(disk: DiskCacheConfig, model: ModelConfig) -> Path:
    """A folder of the model's own in the one that the config names."""
    assert model.alias is not None
    digest = hashlib.sha256(model.alias.encode()).hexdigest()[:8]
    return Path(disk.path) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', model.alias)[:64].lstrip('.')}-{digest}"


def _child_server(config: PoolConfig, socket: Path) -> ServerConfig:
    """What remains of ``server``: queues and their times, what /metrics and the log have; the page is the parent's."""
    server = config.server
    return ServerConfig(
        uds=str(socket),
        max_queue=server.max_queue,
        max_body_bytes=config.max_body_bytes,
        stall_seconds=server.stall_seconds,
        queue_seconds=server.queue_seconds,
        request_seconds=server.request_seconds,
        drain_seconds=config.pool.unload_seconds,
        request_log=server.request_log,
        log_format=server.log_format,
        unknown_fields=server.unknown_fields,
        metrics_aliases=server.metrics_aliases,
        otlp_endpoint=server.otlp_endpoint,
        lora_dir=server.lora_dir,
        ollama_discovery=server.ollama_discovery,
        page=False,
        max_websockets=server.max_websockets,
        websocket_seconds=_LONG_SECONDS,
        websocket_idle_seconds=_LONG_SECONDS,
        keep_alive_seconds=4 * IDLE_SECONDS,
        body_seconds=_LONG_SECONDS,
        send_seconds=_LONG_SECONDS,
        max_header_bytes=2 * server.max_header_bytes if server.max_header_bytes < 2**30 else server.max_header_bytes,
    )
