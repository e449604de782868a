"""The types of values in cfg.json, and what all of its sections have in common.

Ranges are those of the C types behind the fields, so that no value can overflow or abort further down.
"""

from __future__ import annotations

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
# The ggml types llama.cpp writes a KV cache in: F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL BF16. Others abort the process.
CacheType = Literal[0, 1, 2, 3, 6, 7, 8, 20, 30]
# What a browser sends in ``Origin``: a scheme and where it leads, nothing behind it. Desktop shells have schemes too.
Origin = Annotated[str, Meta(pattern=r"^(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]*)\Z")]
# What ``Host`` may name, without its port: a name, a name below which all are meant, an address, or any.
_NAME, _IPV6 = r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*"
Host = Annotated[str, Meta(pattern=rf"^(\*|{_NAME}|{_IPV6})\Z")]
KvValue: TypeAlias = bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | str


def ascii_host(name: str) -> str:
    """A host's name as it is asked for: in lower case, of ASCII (IDNA 2003), without a dot behind it. Raises
    UnicodeError where it is none."""
    return (name if name.isascii() else name.encode("idna").decode()).lower().rstrip(".")


class Section(Struct, frozen=True, kw_only=True):
    """One JSON object of the file."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """``(key, text)`` of what does not fit together; the key is empty when the section as a whole is at fault."""
        yield from ()
