from array import array
from typing import Self

from typing_extensions import Buffer, disjoint_base

from llamafast._core.model import Model

def projector_kinds(path: str) -> list[str]: ...

@disjoint_base
class Projector:
    model: Model
    width: int
    def __new__(
        cls,
        model: Model,
        path: str,
        *,
        n_threads: int,
        batch_max_tokens: int,
        image_max_tokens: int | None = None,
        flash_attn: int | None = None,
        device: str | None = None,
    ) -> Self: ...
    @property
    def has_vision(self) -> bool: ...
    @property
    def has_audio(self) -> bool: ...
    @property
    def sample_rate(self) -> int: ...
    def image(self, width: int, height: int, rgb: Buffer | None = None, n_frames: int = 1) -> Chunks: ...
    def audio(self, n_samples: int, samples: Buffer | None = None) -> Chunks: ...
    def decode_audio(self, data: Buffer) -> array[float]: ...

@disjoint_base
class Chunks:
    def __len__(self) -> int: ...
    def tokens(self, i: int) -> bytes | None: ...
    def span(self, i: int) -> tuple[int, int, bool, bytes]: ...
    def encode(self, i: int, rows: Buffer) -> None: ...
