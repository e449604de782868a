"""Numbers of vectors: rows for a reply, scores of pairs. A vector is bytes of float32, as the engine gives it.

Sole user of numpy in the server, which takes 17 MB and 0.1 s to import: a server that only generates does without, one
that embeds imports this when it starts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def rows(vectors: bytes, width: int) -> NDArray[np.float32]:
    """(n, ``width``): vectors that lie one after another, not copied."""
    return np.frombuffer(vectors, np.float32).reshape(-1, width)


def base64_text(vector: NDArray[np.float32]) -> str:
    """Base64 of little-endian float32, on any machine."""
    return b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def first_values(vectors: Sequence[bytes]) -> list[float]:
    """The first number of each vector: where a model ranks, the score."""
    return [float(np.frombuffer(vector, np.float32, 1)[0]) for vector in vectors]


def probabilities(logits: Sequence[float]) -> list[float]:
    """The logistic function of each, which no logit makes overflow."""
    values = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(values))
    result: list[float] = np.where(values >= 0, 1 / (1 + small), small / (1 + small)).tolist()
    return result


def dot_products(vectors: Sequence[bytes], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Of ``vectors`` of one width by their places, summed in float64: the cosines of those of length 1."""
    unit = [np.frombuffer(vector, np.float32) for vector in vectors]
    return [float(np.einsum("i,i->", unit[first], unit[second], dtype=np.float64)) for first, second in pairs]
