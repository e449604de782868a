"""cfg.json → ``Config``, with every fault of the file in one ``ConfigError``, one line each, JSON path first.

msgspec checks the single values; the walk around it exists because msgspec stops at the first fault and does not say
which key was meant.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from llamafast.config import Config, ModelConfig, PoolConfig, Section
from llamafast.config.fields import in_json_types
from llamafast.config.neighbours import hint_for
from llamafast.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)

logger = logging.getLogger(__name__)

_SHOWN_CHARS = 64  # of a key or number that is nobody's


def parse_config(raw: bytes) -> Config | PoolConfig:
    """The config in a JSON text (UTF-8, a byte order mark allowed). Raises ConfigError: malformed JSON with line and
    column, else as ``build_config``."""
    return build_config(_tree(raw))


def load_tree(path: str | Path) -> dict[str, Any]:
    """What a file says, not yet looked at. Raises ConfigError behind the name of the file, from the root on: it is
    unreadable, or malformed JSON, with line and column."""
    path = absolute(path)
    try:
        return _tree(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in str(error).split("\n"))) from error


def absolute(path: str | Path) -> Path:
    """A path from the root on, in which ``~`` is a home."""
    return Path(os.path.abspath(_expanded(str(path))))


def build_config(tree: dict[str, Any]) -> Config | PoolConfig:
    """The config that a JSON tree means: of several models where it says ``models``. Raises ConfigError: all of unknown
    and missing keys, wrong types, values out of range and combinations that do not fit."""
    if {"model", "models"} <= tree.keys():
        raise ConfigError("models: at most one of model and models may be set")
    faults: list[str] = []
    config = _build(PoolConfig, tree, "", faults) if "models" in tree else _build(Config, tree, "", faults)
    if config is None or faults:
        raise ConfigError("\n".join(faults))
    return config


def refuse_unsupported(config: Config | PoolConfig) -> None:
    """Raises ConfigError when the config asks for what the server cannot do yet."""
    models = {"model": config.model} if isinstance(config, Config) else _by_path(config)
    faults = [
        f"{path}.{key}: not supported yet" for path, model in models.items() for key, wanted in _asked(model) if wanted
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _by_path(config: PoolConfig) -> dict[str, ModelConfig]:
    return {f"models[{i}]": model for i, model in enumerate(config.models)}


def _asked(model: ModelConfig) -> Iterator[tuple[str, bool]]:
    """What is not there yet, and whether it is wanted."""
    yield "vocab_only", model.vocab_only is True


def warn_of_retired(config: Config | PoolConfig) -> None:
    """Log which keys the config has that do nothing, or nothing any more."""
    models = (config.model,) if isinstance(config, Config) else config.models
    if any(model.draft_source is not None and model.draft_file is None for model in models):
        logger.warning("config   a file for drafts does nothing without model.draft_model draft-mtp or draft-simple")
    if config.scheduler.disaggregate_prefill is not None:
        logger.warning("config   scheduler.disaggregate_prefill does nothing any more; the next version refuses it")


def _tree(raw: bytes) -> dict[str, Any]:
    tree = _decode(raw)
    if not isinstance(tree, dict):
        raise ConfigError("the file must hold one JSON object")
    return tree


def _decode(raw: bytes) -> object:
    repeated: dict[int, tuple[object, list[str]]] = {}

    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            repeated[id(tree)] = tree, [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        return tree

    try:
        tree = json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=object_of,
            parse_float=_finite,
            parse_constant=_finite,
        )
        # An escape can spell half of a surrogate pair, which no path or template may hold: UTF-8 refuses it.
        json.dumps(tree, ensure_ascii=False).encode()
        faults = list(_repeated(tree, "", repeated))
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno} column {error.colno}: {error.msg}") from error
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"the file is not valid Unicode: {error.reason}") from error
    except RecursionError as error:
        raise ConfigError("the file is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise ConfigError("a number is too long") from error
    if faults:
        raise ConfigError("\n".join(faults))
    return tree


def _repeated(tree: object, path: str, repeated: Mapping[int, tuple[object, list[str]]]) -> Iterator[str]:
    """A fault for each key that an object has twice. ``repeated`` has these objects by their ids, held so that no other
    gets one of theirs, and the keys."""
    if isinstance(tree, dict):
        if id(tree) in repeated:
            yield from (f"{_path(path, key)}: key given twice in one object" for key in repeated[id(tree)][1])
        for key, value in tree.items():
            yield from _repeated(value, _path(path, key), repeated)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _repeated(value, f"{path}[{i}]", repeated)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ConfigError(f"{number[:_SHOWN_CHARS]}: not a finite number")
    return value


def _build(kind: type[SectionT], tree: dict[str, object], path: str, faults: list[str]) -> SectionT | None:
    """The section that ``tree`` describes, or None after adding to ``faults``."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    before = len(faults)
    values = {}
    for key, value in tree.items():
        if key in fields:
            values[key] = _value(fields[key].type, value, _path(path, key), faults)
        else:
            faults.append(f"{_path(path, key)}: unknown key{_suggestion(key, path, fields)}")
    faults += [f"{_path(path, key)}: required" for key, field in fields.items() if field.required and key not in tree]
    if len(faults) > before:
        return None
    section = kind(**values)
    faults += [f"{'.'.join(filter(None, (path, key)))}: {text}" for key, text in section.conflicts()]
    return section


def _value(kind: Any, tree: object, path: str, faults: list[str]) -> Any:
    """``tree`` as a value of the type ``kind``; containers are walked so that every fault gets its own path."""
    for option in _options(kind):
        if isinstance(tree, dict) and isinstance(option, type) and issubclass(option, Section):
            return _build(option, tree, path, faults)
        if isinstance(tree, list) and get_origin(option) is tuple:
            item_kind = get_args(option)[0]
            return tuple([_value(item_kind, item, f"{path}[{i}]", faults) for i, item in enumerate(tree)])
        if isinstance(tree, dict) and get_origin(option) is dict:
            item_kind = get_args(option)[1]
            return {key: _value(item_kind, item, _path(path, key), faults) for key, item in tree.items()}
    try:
        value = msgspec.convert(tree, kind)
        return _expanded(value) if isinstance(value, str) and _is_path(kind) else value
    except msgspec.ValidationError as error:
        if isinstance(tree, float) and tree.is_integer():
            # 8.0 is an integer, as in JSON Schema, unless the key takes fractions
            with suppress(msgspec.ValidationError):
                return msgspec.convert(int(tree), kind)
        text = in_json_types(str(error))
        if text.startswith("Invalid enum value"):
            text = f"Expected one of {', '.join(_choices(kind))}"
        faults.append(f"{path}: {text[0].lower()}{text[1:].replace('`', '')}")
        return None


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _choices(kind: Any) -> list[str]:
    choices: list[str] = []
    for option in _options(kind):
        if option is bool:
            choices += ["true", "false"]
        elif option is NoneType:
            choices.append("null")
        elif get_origin(option) is Literal:
            choices += map(json.dumps, get_args(option))
    return choices


def _path(parent: str, key: str) -> str:
    if re.fullmatch(rf"\w{{1,{_SHOWN_CHARS}}}", key, re.ASCII):
        return f"{parent}.{key}" if parent else key
    return f"{parent}[{json.dumps(key[:_SHOWN_CHARS])}]"


def _suggestion(key: str, section: str, known: Iterable[str]) -> str:
    if (hint := hint_for(key)) is not None:
        return f"; {hint}"
    nearest = difflib.get_close_matches(key[:_SHOWN_CHARS].lower(), known, n=1)
    if nearest:
        return f"; did you mean {nearest[0]}?"
    elsewhere = [place for place in keys_called(key) if place.rpartition(".")[0] != section]
    return f"; did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else ""


def _keys_of(kind: type[Section], path: str) -> Iterator[str]:
    """Every key below a section that stands where its name says."""
    for field in msgspec.structs.fields(kind):
        yield _path(path, field.name)
        for option in _options(field.type):
            if isinstance(option, type) and issubclass(option, Section):
                yield from _keys_of(option, _path(path, field.name))


_KEYS = tuple(_keys_of(Config, ""))


def keys_called(name: str) -> list[str]:
    """Those whose last part is ``name``."""
    return [key for key in _KEYS if key.rpartition(".")[2] == name]


def _is_path(kind: Any) -> bool:
    metas = [meta for option in _options(kind) for meta in getattr(option, "__metadata__", ())]
    return any((meta.extra or {}).get("is_path") for meta in metas)


def _expanded(path: str) -> str:
    return os.path.expanduser(path) if path.startswith("~") else path
