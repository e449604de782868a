from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class TextStream:
    def __new__(cls, stops: Iterable[str] = ()) -> Self: ...
    def feed(self, piece: bytes) -> tuple[bytes, bool]: ...
    def finish(self) -> bytes: ...
