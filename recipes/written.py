"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def written(path: Path, write: Callable[[Path], None]) -> Path:
    """``path``, whole from the first moment it is there; ``write`` makes it when it is not."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
            draft = Path(scratch) / path.name
            write(draft)
            os.replace(draft, path)
    return path
