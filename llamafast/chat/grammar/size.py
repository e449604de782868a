"""How long a grammar, a schema or a pattern may be."""

from __future__ import annotations

from llamafast.errors import InvalidRequest

# Characters; compiling takes up to seconds for this many.
MAX_CHARACTERS = 128 * 1024


def check_size(text: str, param: str) -> None:
    """Raises InvalidRequest, which names ``param``."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"`{param}` is longer than {MAX_CHARACTERS} characters", param=param)
