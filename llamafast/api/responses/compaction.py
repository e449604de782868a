"""A conversation in a few words: how the model is asked for them, and the item that takes the conversation's place."""

from __future__ import annotations

from llamafast.api.sealed import opened

QUESTION = (
    "Summarise the conversation above for whoever goes on with it and cannot read it: what was asked and decided, what "
    "was found and done, with the names, paths, numbers and other facts that are needed, and what is still to do. "
    "Answer with the summary only."
)
# Tokens that a summary may have where its client says nothing; a quarter of a small context.
MAX_TOKENS = 1024

_INTRODUCTION = "Summary of the conversation before this:"


def summary_of(content: object) -> str | None:
    """What a compaction item's ``encrypted_content`` tells the model; None where it is none of this server's."""
    summary = opened(content)
    return None if summary is None else f"{_INTRODUCTION}\n{summary}"
