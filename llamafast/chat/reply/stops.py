"""Stop strings in the content of a reply, where its reasoning and its calls may hold them."""

from __future__ import annotations

from collections.abc import Sequence


class ContentStops:
    """What of a text may be shown, and where it ends: before the stop string that is complete first, the longest of
    those that end there. The matching is the core's (``_core.text``: automata of Knuth, Morris and Pratt), by
    characters: its result does not depend on how the text is cut, and a character costs the same wherever it stands."""

    def __init__(self, stops: Sequence[str]) -> None:
        """``stops`` are not empty."""
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.n_behind = 0  # characters that came behind the stop string

    def read(self, text: str) -> tuple[str, str | None]:
        """What is certain after more ``text``, and the stop string that has ended it, after which there is no more."""
        held = self._held + text
        for at, letter in enumerate(text, len(self._held) + 1):
            if (found := self._step(letter)) is not None:
                self._held, self.n_behind = "", len(held) - at
                return held[: at - len(found)], found
        n_held = max(self._matched, default=0)
        self._held = held[len(held) - n_held :]
        return held[: len(held) - n_held], None

    def rest(self) -> str:
        """What was held back, now that other text than content follows, or none."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, letter: str) -> str | None:
        """The longest stop string that ``letter`` completes."""
        found: str | None = None
        for k, (stop, failures) in enumerate(self._stops):
            n = self._matched[k]
            while n and stop[n] != letter:
                n = failures[n - 1]
            n += stop[n] == letter
            if n == len(stop):
                if found is None or len(stop) > len(found):
                    found = stop
                n = failures[-1]
            self._matched[k] = n
        return found


def _failures(stop: str) -> list[int]:
    """For each prefix of ``stop`` the length of its longest proper prefix that it ends with."""
    failures = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[matched] != stop[i]:
            matched = failures[matched - 1]
        matched += stop[matched] == stop[i]
        failures[i] = matched
    return failures
