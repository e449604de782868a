"""``llamafast check``: what a config means, without loading or downloading the model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from llamafast.cli.given import add_model, config_of
from llamafast.config import (
    KEY_VARIABLE,
    Config,
    FromPretrained,
    ModelConfig,
    ModelSource,
    PoolConfig,
    cache_type_name,
)
from llamafast.errors import ConfigError, ModelAbsent, ModelLoadError

if TYPE_CHECKING:
    from llamafast.engine.look import Looked, Shared

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HIDDEN = "(hidden)"


def add(commands: Commands) -> None:
    text = "tell what a config comes to, without loading or downloading the model"
    command = commands.add_parser("check", help=text, description=text, allow_abbrev=False)
    add_model(command)
    command.add_argument("--all", action="store_true", help="every key with its value, as JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Asks no hub. That a model is not on this machine is told and no fault: its settings may be meant for another one.
    What is wrong with a model that is here is a ModelLoadError, after the settings: they are right by themselves.
    Raises ConfigError too."""
    config = config_of(arguments, ask_hub=False)
    models = config.models if isinstance(config, PoolConfig) else (config.model,)
    found = [_resolved(model, _shared(config, model)) for model in models]
    with suppress(BrokenPipeError):
        if arguments.all:
            print(_everything(config, found))
        else:
            for model, one in zip(models, found, strict=True):
                for line in _in_short(config, model, one):
                    print(line)
            print(f"server   {_address(config, arguments.api_key)}")
    for one in found:
        if one.fault is not None:
            raise one.fault
        for told in one.absent:
            print(f"llamafast: {told}", file=sys.stderr)
    return 0


def _everything(config: Config | PoolConfig, found: list[_Resolved]) -> str:
    """The whole config with its defaults; for models that are on this machine also what llama.cpp is told."""
    shown = msgspec.to_builtins(config)
    if config.server.ssl_keyfile_password is not None:
        shown["server"]["ssl_keyfile_password"] = HIDDEN
    resolved: Any = [one.settings for one in found]
    settings = {"config": shown, "resolved": resolved if isinstance(config, PoolConfig) else resolved[0]}
    return msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()


def _in_short(config: Config | PoolConfig, model: ModelConfig, one: _Resolved) -> Iterator[str]:
    if (looked := one.looked) is None:
        yield f"model    {model.alias or _source_name(model.source)}"
        return
    from llamafast.chat.format import ChatFormat
    from llamafast.engine.numa import in_words as numa_in_words
    from llamafast.engine.placement import placement_of
    from llamafast.engine.threads import too_many_threads

    first = looked.params[0]
    yield f"model    {looked.info.id}: {looked.info.description}, {looked.path}"
    n_seq_max, n_batch = first["n_seq_max"], first["n_batch"]
    yield f"context  {looked.cells}, {n_seq_max} sequences, steps of up to {n_batch} rows"
    if model.type_k is not None or model.type_v is not None:
        yield f"cache    keys {cache_type_name(model.type_k)}, values {cache_type_name(model.type_v)}"
    yield from looked.model_params.told()
    if model.numa != "disabled":
        yield f"numa     {numa_in_words(model.numa)}"
    threads, up_to = first["n_threads"], "up to " if placement_of(model).choose_threads else ""
    yield f"threads  {up_to}{threads} to decode, {first['n_threads_batch']} to prefill"
    if looked.info.generates:
        chat = ChatFormat(model, looked.info, looked.tokenizer)
        takes = "text" if model.mtmd is None else "text, and what its projector takes"
        yield f"chat     {chat.summary()}; takes {takes}"
    yield f"memory   {looked.memory(one.beside, config.cache.ram_bytes)}"
    for adapter in (one.settings or {}).get("loras", ()):
        name = "" if adapter["name"] is None else f" {adapter['name']}"
        invoked = f", from {text!r} on" if (text := adapter.get("alora_invocation_string")) else ""
        yield f"adapter  {adapter['id']}{name}: {adapter['path']}, scale {adapter['scale']:g}{invoked}"
    if (told := too_many_threads(model)) is not None:
        one.absent.append(told)


def _address(config: Config | PoolConfig, key: str | None) -> str:
    server = config.server
    scheme = "http" if server.ssl_certfile is None else "https"
    host = f"[{server.host}]" if ":" in server.host else server.host
    where = f"{scheme}://{host}:{server.port}/v1" if server.uds is None else f"{scheme} on {server.uds}"
    keys = "--api-key" if key else f"{KEY_VARIABLE}, if it is set"
    return f"{where}, keys: {server.api_key_file or keys}"


class _Resolved(NamedTuple):
    """What becomes of a model's settings, what is wrong with it, and which of its files nobody can look at here."""

    looked: Looked | None
    settings: dict[str, Any] | None
    fault: Exception | None
    absent: list[str]
    beside: dict[str, int]


def _shared(config: Config | PoolConfig, model: ModelConfig) -> Shared | None:
    """None where it is the only one, and always here."""
    from llamafast.engine.look import Shared

    if isinstance(config, Config) and not model.comes_and_goes:
        return None
    if model.memory_bytes is not None:
        return Shared(model.memory_bytes, 1)
    n_models = len(config.models) if isinstance(config, PoolConfig) else 1
    return Shared(None if config.pool is None else config.pool.max_bytes, n_models)


def _resolved(model: ModelConfig, shared: Shared | None) -> _Resolved:
    looked: Looked | None = None
    settings: dict[str, Any] | None = None
    absent: list[str] = []
    beside: dict[str, int] = {}
    try:
        path = _find(model.source, "the model", absent)
        loras = [_find(lora.source, "an adapter", absent) for lora in model.loras]
        projector = None if model.mtmd is None else _find(model.mtmd.source, "the projector", absent)
        draft = None if model.draft_file is None else _find(model.draft_file, "the model that drafts", absent)
        drafts = "draft model" if model.has_draft_model else "draft head"
        beside = {"adapters": _size(loras), "projector": _size([projector]), drafts: _size([draft])}
        if path is not None:
            from llamafast.engine.load import check_adapters
            from llamafast.engine.look import look

            looked = look(model, path, sum(beside.values()), shared, draft)
            settings = looked.resolved
            settings["loras"] = check_adapters(model.loras, loras, path)
    except (ConfigError, ModelLoadError) as error:
        return _Resolved(looked, settings, error, absent, beside)
    return _Resolved(looked, settings, None, absent, beside)


def _size(paths: list[Path | None]) -> int:
    return sum(path.stat().st_size for path in paths if path is not None)


def _source_name(source: ModelSource) -> str:
    if isinstance(source, str):
        return source
    place = source.repo_id if isinstance(source, FromPretrained) else source.package
    return f"{place}: {source.filename}"


def _find(source: ModelSource, what: str, absent: list[str]) -> Path | None:
    """Where it is on this machine; None where it is not, and ``absent`` says why. Raises ModelLoadError."""
    from llamafast.model_files import find_model

    try:
        path = find_model(source)
    except ModelAbsent as error:
        absent.append(f"{what} is not on this machine: {error}")
        return None
    if path is None and isinstance(source, FromPretrained):
        absent.append(
            f"{source.repo_id}: {source.filename} is not on this machine, or not all of it; "
            "`llamafast serve` downloads it"
        )
    return path
