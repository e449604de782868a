"""The types of values in cfg.json, and what all of its sections have in common.

Ranges are those of the C types behind the fields, so that no value can overflow or abort further down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

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
# A file's or folder's name, in which ``~`` is somebody's home.
FilePath = Annotated[str, Meta(min_length=1, extra={"is_path": True})]
# The ggml types llama.cpp writes a KV cache in, by number or name. Others abort the process.
CacheType = Literal[
    0, 1, 2, 3, 6, 7, 8, 20, 30, "f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "bf16"
]  # fmt: skip
_CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
# What a browser sends in ``Origin``: a scheme and where it leads, nothing behind it. Desktop shells have schemes too.
Origin = Annotated[str, Meta(pattern=r"^(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]*)\Z")]
# What ``Host`` may name, without its port: a name, a name below which all are meant, an address, or any.
_NAME, _IPV6 = r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*"
Host = Annotated[str, Meta(pattern=rf"^(\*|{_NAME}|{_IPV6})\Z")]
# Where a server of somebody's is, without a name and password in it, which would end up in the log.
HttpUrl = Annotated[str, Meta(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?\Z")]
_F16, _FLOATS = 1, ("f32", "f16", "bf16")
_IN_BACKTICKS, _TYPES = re.compile(r"`[^`]*`"), re.compile(r"\b(?:str|int|float|bool)\b")
_JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
KvValue: TypeAlias = bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | str


def in_json_types(fault: str) -> str:
    """What msgspec has to say of a value, by JSON's names of types for Python's."""
    return _IN_BACKTICKS.sub(lambda told: _TYPES.sub(lambda kind: _JSON_TYPES[kind[0]], told[0]), fault)


def cache_type(type: CacheType | None) -> int | None:
    """The number of a ggml type."""
    return _CACHE_TYPES[type] if isinstance(type, str) else type


def cache_type_name(type: CacheType | None) -> str:
    """What null means too."""
    number = _F16 if type is None else cache_type(type)
    return next(name for name, known in _CACHE_TYPES.items() if known == number)


def is_quantised(type: CacheType | None) -> bool:
    """Whether a cache of this type is written in blocks."""
    return cache_type_name(type) not in _FLOATS


def ascii_host(name: str) -> str:
    """A host's name as it is asked for: in lower case, of ASCII (IDNA 2003), without a dot behind it. Raises
    UnicodeError where it is none."""
    return (name if name.isascii() else name.encode("idna").decode()).lower().rstrip(".")


class Section(Struct, frozen=True, kw_only=True):
    """One JSON object of the file."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """``(key, text)`` of what does not fit together; the key is empty when the section as a whole is at fault."""
        yield from ()
