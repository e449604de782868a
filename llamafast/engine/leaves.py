"""Which saved states may be evicted, in RAM as on the disk, and which of them is cheapest to lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

from llamafast._core.states import State


class Place(Protocol):
    """Where a state's bytes are; ``waits``: it is among the leaves."""

    priority: float
    waits: bool


PlaceT = TypeVar("PlaceT", bound=Place)


class Leaves(Generic[PlaceT]):
    """States that none continues, each with its place.

    What goes first has the least uses x tokens / bytes, aged by the value of what went before it
    (GreedyDual-Size-Frequency, Cherkasova 1998). Computing a token costs the same for all, so its cost does not count.
    """

    def __init__(self) -> None:
        self.age = 0.0
        self._heap: list[tuple[float, int, State, PlaceT]] = []
        self._pushed = count()  # no two entries are equal

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[tuple[State, PlaceT]]:
        return ((state, place) for _, _, state, place in self._heap)

    def worth(self, state: State, n_bytes: int) -> float:
        return self.age + state.uses * state.spares / max(n_bytes, 1)

    def add(self, state: State, place: PlaceT) -> None:
        """Unless it is there. Its turn comes by what it is worth now, later where it is worth more by then."""
        if not place.waits:
            place.waits = True
            heappush(self._heap, (place.priority, next(self._pushed), state, place))

    def pop(self, may_go: Callable[[State, PlaceT], bool], beyond: float = float("inf")) -> State | None:
        """The one that is worth least, and no more than ``beyond``; None where there is none. Those that may not go are
        no leaves any more."""
        while self._heap:
            priority, _, state, place = heappop(self._heap)
            place.waits = False
            if not may_go(state, place):
                continue
            if place.priority > priority:
                self.add(state, place)
                continue
            if priority > beyond:
                self.add(state, place)
                return None
            # what has lost its heirs may be of an earlier age
            self.age = max(self.age, priority)
            return state
        return None

    def forget_dropped(self, n_states: int) -> None:
        """Those that were dropped before their turn came, where they are most of all there are."""
        if len(self._heap) > 2 * n_states + 64:
            self._heap = [entry for entry in self._heap if entry[2].kept]
            heapify(self._heap)

    def clear(self) -> None:
        self._heap.clear()
