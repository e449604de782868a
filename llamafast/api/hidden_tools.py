"""Tools that run at OpenAI or Anthropic, of which the model is shown nothing: a header and the log tell so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

from llamafast.api.http import Headers

log = logging.getLogger(__name__)

_NAMED_KINDS, _NAMED_CHARS = 16, 64


def ignored(kinds: Iterable[str]) -> Headers:
    """The header that tells which kinds of tools the model is not shown. Clients choose the kinds: what a header cannot
    hold is percent-encoded, and of very many or long ones only the first are told."""
    told = [f"tools.{quote(kind, safe='')[:_NAMED_CHARS]}" for kind in sorted(kinds)[:_NAMED_KINDS]]
    return ((b"x-llamafast-ignored", ", ".join(told).encode()),) if told else ()


@lru_cache(128)
def warn_of_hidden(kind: str) -> None:
    """Once: clients send the same tools with every request."""
    log.warning("tools of type %r do not run here: the model is not shown them", kind)
