"""Which states may be written to the disk, and which of them at once."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator

from llamafast._core.states import State
from llamafast.engine.prefix_key import digest_of

# Of what was lost unwritten, so many are known again.
GHOSTS = 2**16


class Candidates:
    """States that are in RAM alone and may be written.

    Which prefixes were lost unwritten is kept (by their digests, as a cache's ghosts are): what is computed again is
    worth writing at once.
    """

    def __init__(self) -> None:
        self._untried: dict[State, bool] = {}
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, state: State) -> bool:
        return state in self._untried

    def __iter__(self) -> Iterator[State]:
        return iter(self._untried)

    def add(self, state: State, tokens: array[int], root: bytes) -> bool:
        """It is new; whether it was lost before."""
        self._untried[state] = True
        digest = _digest(tokens, root)
        if digest not in self._ghosts:
            return False
        del self._ghosts[digest]
        return True

    def add_tried(self, state: State) -> None:
        """It could not be written, or is on the disk no more: that nobody computes is no reason to try again."""
        self._untried[state] = False

    def discard(self, state: State) -> None:
        self._untried.pop(state, None)

    def lose(self, tokens: array[int], root: bytes) -> None:
        """One leaves RAM."""
        self._ghosts[_digest(tokens, root)] = None
        if len(self._ghosts) > GHOSTS:
            self._ghosts.popitem(last=False)

    def forget(self) -> None:
        """What was lost."""
        self._ghosts.clear()

    def is_untried(self, state: State) -> bool:
        return self._untried.get(state, False)

    @property
    def has_untried(self) -> bool:
        return any(self._untried.values())

    def by_worth(self) -> list[State]:
        """What is worth most first."""
        return sorted(self._untried, key=lambda state: -state.priority)


def _digest(tokens: array[int], root: bytes) -> int:
    return digest_of(root + tokens.tobytes())
