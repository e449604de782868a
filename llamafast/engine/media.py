"""Media as they cross the engine's door: what a client sent, how it stands in a prompt, who encodes it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self

from msgspec import Struct

from llamafast.errors import LlamafastError

MediaKind = Literal["image", "audio", "video"]


class DetachedText(str):
    """A text that ends with so much base64 that it was left where it is: itself it is what lies before."""

    base64: memoryview

    def __new__(cls, head: str, base64: memoryview) -> Self:
        self = super().__new__(cls, head)
        self.base64 = base64
        return self


class MediaSource(Struct, frozen=True, kw_only=True):
    """A picture, sound or video as a request has it: by a URL (``data:``, ``http:``, ``https:`` or ``file:``), as
    bare base64 where not ``is_url``, or as it is: then ``data`` are its bytes, or what its loader has made of them.
    ``path`` leads to it in the request. ``low_detail`` asks for a small picture."""

    kind: MediaKind
    text: str = ""
    path: str
    is_url: bool = True
    low_detail: bool = False
    data: Any = None


class MediaRows(Struct, frozen=True):
    """Rows that an encoder makes, as the core's Span takes them: over how many positions, whether these are causal, and
    their offsets (none: row by row)."""

    n_rows: int
    n_positions: int
    causal: bool
    offsets: bytes = b""


class Medium(Struct, frozen=True, eq=False, kw_only=True):
    """A picture, sound or video that has been looked at, and not encoded yet.

    ``digest`` (32 bytes) is of all that its rows depend on. ``chunks`` stand for it in a prompt: int32 tokens, and
    rows. ``source`` is what its encoder knows it by, ``path`` leads to it in the request.
    """

    kind: MediaKind
    digest: bytes
    chunks: tuple[array[int] | MediaRows, ...]
    source: Any
    path: str = ""


class MediaSpan(Struct, frozen=True, eq=False):
    """Where the rows of a chunk of a medium lie in a prompt, from token ``row`` on."""

    row: int
    medium: Medium
    chunk: int

    @property
    def rows(self) -> MediaRows:
        rows = self.medium.chunks[self.chunk]
        assert isinstance(rows, MediaRows)
        return rows


class MediaLoader(Protocol):
    """Where media come from. ``projectors`` are libmtmd's names of what encodes them."""

    projectors: tuple[str, ...]

    async def cut(self, sound: MediaSource, most_seconds: float) -> list[MediaSource]:
        """A sound, given as ``data``, in pieces of so many seconds at most, in their order; each ends where it is
        quiet. One that is no longer stays as it is. Raises what ``load`` raises."""

    async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
        """Fetch them and find out how they stand in a prompt. What was found out for one salt (``Tenant.salt``) another
        one is not told of, not even by being faster. Raises InvalidMedia with the path of the one at fault, QueueFull
        or EngineUnavailable."""


class Encoding(Protocol):
    """Somebody's share in the encoding of a medium."""

    @property
    def error(self) -> LlamafastError | None:
        """What kept it from being encoded."""

    def rows(self, chunk: int) -> memoryview[float] | None:
        """Those of a chunk, (n_rows * width,) float32, once they are there."""

    def leave(self) -> None:
        """They are not wanted any more, by this one."""


class MediaEncoder(Protocol):
    """What makes rows of media, somewhere else than on the engine thread.

    ``modalities`` are what it takes. A span that is not causal has at most ``widest_span`` rows, 0: all are causal.
    Where it ``shares_cpus`` with those that compute it is to be stopped between its turns, and says ``on_busy`` when it
    has something to do again.
    """

    modalities: tuple[MediaKind, ...]
    widest_span: int
    shares_cpus: bool
    on_busy: Callable[[], None]

    def encode(self, medium: Medium, salt: bytes, on_news: Callable[[], None]) -> Encoding:
        """Have a medium encoded, or take part where that is done already for the same ``salt``. ``on_news`` is called
        in any thread whenever rows have come or an error has. Never blocks. Any thread."""

    @property
    def busy(self) -> bool:
        """Whether it has something to do. Any thread."""

    def pause(self) -> None:
        """Compute nothing until ``resume``. Any thread; both change nothing where it is so already."""

    def resume(self) -> None: ...

    def counts(self) -> dict[str, float]:
        """Its series of ``llamafast.series``. Any thread."""

    def close(self) -> None:
        """Encode nothing any more; who waits for it is told."""
