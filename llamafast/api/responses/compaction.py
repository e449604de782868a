"""A conversation in a few words: how the model is asked for them, and the item that takes the conversation's place."""

from __future__ import annotations

import base64

QUESTION = (
    "Summarise the conversation above for whoever goes on with it and cannot read it: what was asked and decided, what "
    "was found and done, with the names, paths, numbers and other facts that are needed, and what is still to do. "
    "Answer with the summary only."
)
# Tokens that a summary may have; a quarter of a small context.
MAX_TOKENS = 1024

_PREFIX = "llamafast:"
_INTRODUCTION = "Summary of the conversation before this:"


def sealed(summary: str) -> str:
    """The ``encrypted_content`` of a compaction item: not secret, but nothing that clients look into."""
    return _PREFIX + base64.b64encode(summary.encode()).decode()


def opened(content: object) -> str | None:
    """What such an item tells the model; None where it is none of this server's."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return None
    try:
        summary = base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except ValueError:
        return None
    return f"{_INTRODUCTION}\n{summary}"
