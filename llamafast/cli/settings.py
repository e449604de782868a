"""Single settings, as flags and variables give them, and a config's tree with them in place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import msgspec

from llamafast.config import Config, PoolConfig, Section
from llamafast.errors import ConfigError

_INDEX = re.compile(r"\[(\d+)\]")


class Setting(NamedTuple):
    """A ``value`` for the key ``path`` (``model.n_ctx``, ``models[0].n_ctx``), and who ``said`` so. With ``added`` it,
    or each of its own where it is a list, goes to the end of the list that is there."""

    path: str
    value: Any
    said: str
    added: bool = False


def read_value(path: str, text: str) -> Any:
    """What a text means as the value of a key: JSON, and where that is none, or none that the key takes, the text."""
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return text
    kind = _kind_at(_names(path))
    if kind is None or isinstance(value, str):
        return value
    return text if not _takes(kind, value) and _takes(kind, text) else value


def put(tree: dict[str, Any], settings: Iterable[Setting]) -> dict[str, str]:
    """Put them into ``tree``, the later over the earlier; who has said what of it, by path. Raises ConfigError."""
    said = {}
    for setting in settings:
        names = _names(setting.path)
        if names[0] == "model" and "models" in tree:
            rest = ".".join(names[1:])
            variable = f"LLAMAFAST_MODELS__0__{rest.upper().replace('.', '__')}"
            raise ConfigError(
                f"{setting.said}: the config has several models: write --set models[0].{rest}=..., or set {variable}"
            )
        place: Any = tree
        for name, next_name in zip(names, [*names[1:], ""], strict=True):
            last = not next_name
            key: Any = name
            if isinstance(place, list):
                if not name.isdecimal() or int(name) >= len(place):
                    raise ConfigError(f"{setting.said}: there is no {name} in a list of {len(place)}")
                key = int(name)
            elif not isinstance(place, dict):
                raise ConfigError(f"{setting.said}: {setting.path} is below something that has no parts")
            if last and setting.added:
                there = place.get(key) or []
                if not isinstance(there, list):
                    raise ConfigError(f"{setting.said}: {setting.path} is no list, to which it could be added")
                more = setting.value if isinstance(setting.value, list) else [setting.value]
                place[key] = [*there, *more]
            elif last:
                place[key] = setting.value
            elif isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[key]
        said[spelled(setting.path)] = setting.said
    return said


def spelled(path: str) -> str:
    """The path as faults have it: ``models[0].n_ctx``."""
    return "".join(f"[{name}]" if name.isdecimal() else f".{name}" for name in _names(path)).lstrip(".")


def _names(path: str) -> list[str]:
    return _INDEX.sub(r".\1", path).split(".")


def _finite(number: str) -> float:
    """Raises ValueError for what no config file may have either."""
    if not math.isfinite(value := float(number)):
        raise ValueError(number)
    return value


def _kind_at(names: list[str]) -> Any:
    """The type of the value at a path, None where there is no such key."""
    kind: Any = PoolConfig if names[0] == "models" else Config
    for name in names:
        found = None
        for option in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
            if isinstance(option, type) and issubclass(option, Section):
                found = next((field.type for field in msgspec.structs.fields(option) if field.name == name), found)
            elif get_origin(option) is tuple and name.isdecimal():
                found = get_args(option)[0]
        if found is None:
            return None
        kind = found
    return kind


def _takes(kind: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
