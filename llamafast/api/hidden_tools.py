"""Tools that run at OpenAI or Anthropic, of which the model is shown nothing: a header, or over a socket the first
event, and the log tell so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import quote

from llamafast.api.http import IGNORED, Headers

log = logging.getLogger(__name__)

_NAMED_KINDS, _NAMED_CHARS = 16, 64
MAX_WARNED = 256

_warned: set[str] = set()


def ignored(kinds: Iterable[str]) -> Headers:
    """The header that tells which kinds of tools the model is not shown."""
    return ((IGNORED, ", ".join(told).encode()),) if (told := named(kinds)) else ()


def named(kinds: Iterable[str]) -> list[str]:
    """The kinds as clients are told them. They choose them: what a header cannot hold is percent-encoded, and of very
    many or long ones only the first are told."""
    return [f"tools.{quote(kind, safe='')[:_NAMED_CHARS]}" for kind in sorted(kinds)[:_NAMED_KINDS]]


def warn_of_hidden(kind: str) -> None:
    """Once, and of few kinds: clients send the same tools with every request, and choose their kinds."""
    if kind not in _warned and len(_warned) < MAX_WARNED:
        _warned.add(kind)
        log.warning("tools of type %r do not run here: the model is not shown them", kind)
