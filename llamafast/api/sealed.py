"""Text of ours that clients keep and bring back: not secret, but nothing that they look into."""

from __future__ import annotations

import base64

_PREFIX = "llamafast:"


def sealed(text: str) -> str:
    return _PREFIX + base64.b64encode(text.encode()).decode()


def opened(content: object) -> str | None:
    """What ``sealed`` was given; None for what is none of this server's."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except ValueError:
        return None
