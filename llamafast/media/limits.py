"""How large one item may be."""

from __future__ import annotations

from typing import Literal, NamedTuple

from llamafast.config import MtmdConfig
from llamafast.errors import InvalidMedia

Kind = Literal["image", "audio", "video"]


class ByteLimit(NamedTuple):
    """The most bytes of an item of one kind, as its file has them."""

    kind: Kind
    n_bytes: int

    def check(self, n_bytes: int) -> None:
        """Raises InvalidMedia for more."""
        if n_bytes > self.n_bytes:
            raise InvalidMedia(f"the {self.kind} is larger than model.mtmd.{self.kind}_max_bytes ({self.n_bytes})")


def byte_limit(kind: Kind, config: MtmdConfig) -> ByteLimit:
    return ByteLimit(kind, getattr(config, f"{kind}_max_bytes"))
