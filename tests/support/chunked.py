"""Texts of models in pieces, and what was understood of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from llamafast.chat.reply.deltas import Delta, assemble


def chunkings(text: str, n_random: int = 50) -> Iterator[list[str]]:
    """``text`` as a whole, in pieces of equal sizes, and cut at random places, the same ones every time."""
    for size in (len(text) or 1, 1, 2, 3, 5, 7, 13, 31):
        yield [text[i : i + size] for i in range(0, len(text), size)]
    places = random.Random(len(text))
    for _ in range(n_random):
        cuts = sorted(places.randrange(len(text) + 1) for _ in range(places.randrange(1, 12)))
        yield [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def message_of(deltas: Iterable[Delta]) -> dict[str, Any]:
    """The message in plain values; arguments must be JSON."""
    message = assemble(deltas)
    return {
        "content": message.content,
        "reasoning": message.reasoning,
        "calls": [(call.name, json.loads(call.arguments)) for call in message.tool_calls],
    }
