"""Names of model files: what a glob means, and which parts a split GGUF has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from llamafast.errors import ModelLoadError

_LISTED_FILES = 50  # most names an error text lists


def split_parts(name: str) -> list[str]:
    """All names of the split GGUF that ``name`` belongs to, in order; ``[name]`` when it is not split."""
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", name, re.ASCII | re.DOTALL)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{part:05d}-of-{match[3]}.gguf" for part in range(1, int(match[3]) + 1)]


def is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[]")


def choose(pattern: str, names: Iterable[str], place: str) -> str:
    """The one name that ``pattern`` means, the first part for a split GGUF. A ``*`` matches slashes too."""
    names = sorted(names)
    matches = [name for name in names if (fnmatchcase(name, pattern) if is_glob(pattern) else name == pattern)]
    chosen = sorted({split_parts(name)[0] for name in matches})
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise ModelLoadError(f"{place}: no file matches {pattern}; its files: {listing(names)}")
    raise ModelLoadError(f"{place}: {pattern} matches {listing(chosen)}; its files: {listing(names)}")


def listing(names: list[str]) -> str:
    text = ", ".join(names[:_LISTED_FILES]) or "none"
    return text if len(names) <= _LISTED_FILES else f"{text} and {len(names) - _LISTED_FILES} more"
