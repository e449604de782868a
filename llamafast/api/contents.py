"""What a request and its answer say, for the logs of those who have to keep it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from llamafast.engine.types import Event, Generation

# Of more choices no text is kept.
MAX_CHOICES = 64
# A character has at most so many bytes.
_WIDEST = 4


class Contents:
    """At most ``max_chars`` characters of the body as it was sent, and of all choices together as many: the text as the
    model wrote it, reasoning and calls too. What is cut off is counted behind it."""

    def __init__(self, max_chars: int) -> None:
        self.body = ""
        self._max_chars = max_chars
        self._room = max_chars
        self._texts: dict[int, list[str]] = {}
        self._lost: dict[int, int] = {}

    def asked(self, body: bytes) -> None:
        # an incomplete character is one that is cut off
        told = body[: _WIDEST * self._max_chars].decode("utf-8", "ignore" if len(body) > self._max_chars else "replace")
        told = told[: self._max_chars]
        n_more = len(body) - len(told.encode())
        self.body = f"{told}...[{n_more} more bytes]" if n_more > 0 else told

    def hear(self, generation: Generation) -> Generation:
        """The same, whose texts are noted as they are read."""
        return cast("Generation", _Heard(generation, self))

    def note(self, events: Iterable[Event]) -> None:
        for event in events:
            kept = event.text[: self._room] if event.index < MAX_CHOICES else ""
            self._room -= len(kept)
            self._texts.setdefault(event.index, []).append(kept)
            if n_more := len(event.text) - len(kept):
                self._lost[event.index] = self._lost.get(event.index, 0) + n_more

    @property
    def answer(self) -> str | list[str] | None:
        """The text, or those of several choices; None where nothing was generated."""
        told = [self._told(index) for index in sorted(self._texts)[:MAX_CHOICES]]
        if (n_more := len(self._texts) - len(told)) > 0:
            told.append(f"[{n_more} more choices]")
        return told[0] if len(told) == 1 else told or None

    def _told(self, index: int) -> str:
        text, n_more = "".join(self._texts[index]), self._lost.get(index, 0)
        return f"{text}...[{n_more} more characters]" if n_more else text


class _Heard:
    """A Generation between the engine and whoever reads it."""

    def __init__(self, generation: Generation, contents: Contents) -> None:
        self._generation = generation
        self._contents = contents

    def __aiter__(self) -> _Heard:
        return self

    async def __anext__(self) -> list[Event]:
        events = await self._generation.__anext__()
        self._contents.note(events)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generation, name)
