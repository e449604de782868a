"""cfg.json → ``Config``, with every fault of the file in one ``ConfigError``, one line each, JSON path first.

msgspec checks the single values; the walk around it exists because msgspec stops at the first fault and does not say
which key was meant.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from llamafast.config import Config, ModelConfig, PoolConfig, Section
from llamafast.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)

logger = logging.getLogger(__name__)

_SHOWN_CHARS = 64  # of a key or number that is nobody's


def load_config(path: str | Path) -> Config | PoolConfig:
    """The config in a file. Raises ConfigError: unreadable file, or as ``parse_config``."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    return parse_config(raw)


def parse_config(raw: bytes) -> Config | PoolConfig:
    """The config in a JSON text (UTF-8, a byte order mark allowed): of several models where it says ``models``.

    Raises ConfigError: malformed JSON with line and column, else all of unknown and missing keys, wrong types, values
    out of range and combinations that do not fit.
    """
    tree = _decode(raw)
    if not isinstance(tree, dict):
        raise ConfigError("the file must hold one JSON object")
    if {"model", "models"} <= tree.keys():
        raise ConfigError("models: at most one of model and models may be set")
    faults: list[str] = []
    config = _build(PoolConfig, tree, "", faults) if "models" in tree else _build(Config, tree, "", faults)
    if config is None or faults:
        raise ConfigError("\n".join(faults))
    return config


def refuse_unsupported(config: Config | PoolConfig) -> None:
    """Raises ConfigError when the config asks for what the server cannot do yet."""
    models = {"model": config.model} if isinstance(config, Config) else _named(config)
    faults = [
        f"{path}.{key}: not supported yet" for path, model in models.items() for key, wanted in _asked(model) if wanted
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _named(config: PoolConfig) -> dict[str, ModelConfig]:
    return {f"models[{i}]": model for i, model in enumerate(config.models)}


def _asked(model: ModelConfig) -> Iterator[tuple[str, bool]]:
    """What is not there yet, and whether it is wanted."""
    yield "vocab_only", model.vocab_only is True


def warn_of_retired(config: Config | PoolConfig) -> None:
    """Log which keys the config has that do nothing, or nothing any more."""
    models = (config.model,) if isinstance(config, Config) else config.models
    if any(model.draft_source is not None and "draft-mtp" not in (model.drafts or ()) for model in models):
        logger.warning("config   a file for drafts does nothing without model.draft_model draft-mtp")
    if config.scheduler.disaggregate_prefill is not None:
        logger.warning("config   scheduler.disaggregate_prefill does nothing any more; the next version refuses it")


def _decode(raw: bytes) -> object:
    try:
        tree = json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
        # An escape can spell half of a surrogate pair, which no path or template may hold: UTF-8 refuses it.
        json.dumps(tree, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno} column {error.colno}: {error.msg}") from error
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"the file is not valid Unicode: {error.reason}") from error
    except RecursionError as error:
        raise ConfigError("the file is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise ConfigError("a number is too long") from error
    return tree


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ConfigError(f"{_path('', twice)}: key given twice in one object")
    return tree


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
            faults.append(f"{_path(path, key)}: unknown key{_suggestion(key, fields)}")
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
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        if isinstance(tree, float) and tree.is_integer():
            # 8.0 is an integer, as in JSON Schema, unless the key takes fractions
            with suppress(msgspec.ValidationError):
                return msgspec.convert(int(tree), kind)
        text = str(error)
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


def _suggestion(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key[:_SHOWN_CHARS].lower(), known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
