"""Prefixes of what has run, kept in host RAM within a budget, and which are evicted.

A prefix that stays in KV cells takes their room and makes every decode slower: llama.cpp makes a mask of every cell up
to the highest used one. In RAM it costs nothing until it is wanted, and taking it back is hundreds of times faster than
computing it.

A state is a part of a sequence that continues another state, so what prompts have in common is stored once, and saving
or restoring a part delays a step but little. The tree that finds them by their tokens is in the core.

Who finds a prefix is given handles of its states, not their bytes. These are asked for when they are restored, and may
be here, on their way, or gone; until then what is handed out is held, and counts in the budget like all that is kept.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from llamafast._core.context import UNLIMITED
from llamafast._core.invocation import Invocation
from llamafast._core.states import PrefixTree, State
from llamafast.engine.kv_log import RAM, KVLog, Tier
from llamafast.engine.leaves import Leaves
from llamafast.engine.prefix_key import salt_at
from llamafast.engine.save_points import MIN_TOKENS, PART, SavePoints

# A state that is not saved in parts is restored whole and then cut, at about a thousandth of what computing it takes.
MAX_WASTE = 64
# What a state takes beside its bytes and tokens, about.
STATE_BYTES = 1000

COUNTED = (
    "cache_restores", "cache_saves", "cache_checkpoint_hits", "cache_checkpoint_saves", "evictions_budget",
    "evictions_replaced",
)  # fmt: skip


class Part(NamedTuple):
    """A state and which tokens to take of it."""

    state: State
    start: int
    stop: int


class PrefixCache:
    """At most ``budget`` bytes of saved states. Engine thread only, but for the counts.

    A sequence of up to ``n_cuttable`` tokens can be cut anywhere, a longer one goes on only from where it was saved.
    Without ``in_parts`` each state is everything up to its end.

    What goes first is what is cheapest to lose, as ``Leaves`` has it. What somebody holds does not go, as if a state
    continued it; so what is new may go at once.

    Of tokens with an ``Invocation`` those up to it are of ``salt``, those behind it of the invocation's own: a state
    that ends behind it is one of that salt, and continues what is there of either.
    """

    brings = False  # whether bytes of what was found may have to be waited for

    def __init__(self, budget: int, *, n_cuttable: int = UNLIMITED, in_parts: bool = True) -> None:
        self.budget = budget
        self.n_cuttable = n_cuttable
        self.in_parts = in_parts
        self.used_bytes = 0
        self.n_states = 0
        self.n_checkpoints = 0
        self.log: KVLog | None = None  # where somebody is told of what is kept for anybody
        self._counts = dict.fromkeys(COUNTED, 0)
        self._tree = PrefixTree()
        self._leaves: Leaves[State] = Leaves()
        self._held: Counter[State] = Counter()

    @property
    def cuts_anywhere(self) -> bool:
        return self.n_cuttable == UNLIMITED

    def counts(self) -> dict[str, float]:
        """What is kept, and what was done since the start. Any thread."""
        counts: dict[str, float] = {
            "cache_states": self.n_states,
            "cache_checkpoints": self.n_checkpoints,
            "cache_bytes": self.used_bytes,
            "cache_max_bytes": self.budget,
        }
        return counts | self._counts

    def find(self, tokens: array[int], salt: bytes, more_than: int, invoked: Invocation | None = None) -> list[Part]:
        """The parts that make most of ``tokens``, in order; none where they are not worth more than ``more_than``.

        The last token does not count: it is always computed, as logits are not kept. To look is free: what is going to
        be restored is to be told to ``use``, and held before anything else is kept.
        """
        state, stop = self._most_of(tokens, salt, len(tokens) - 1, invoked)
        if state is None or stop < more_than + MIN_TOKENS or stop * MAX_WASTE < state.stop:
            return []
        parts: list[Part] = []
        part: State | None = state
        while part is not None:
            parts.append(Part(part, part.start, stop))
            stop = part.start
            part = part.base
        parts.reverse()
        return parts

    def use(self, found: list[Part]) -> None:
        """Count what was found, some parts, as taken: what is used stays longer."""
        self._counts["cache_restores"] += 1
        self._counts["cache_checkpoint_hits"] += self._is_checkpoint(found[-1].state)
        for part in found:
            part.state.uses += 1
            self._value(part.state)

    def saved(self, state: State) -> bytes | memoryview | None:
        """The bytes of a state that was found, for somebody who waits for them; none where it is gone, None as long as
        they are not here. Never waits: they are asked for, and whoever brings them wakes the engine thread."""
        return state.saved

    def ask(self, state: State) -> None:
        """Have the bytes of a state brought that somebody will want, where they are not here."""

    def restored(self, state: State, n_tokens: int) -> None:
        """Somebody has so many tokens of it in KV cells now."""

    def refused(self, state: State) -> None:
        """llama.cpp did not take it, though there was room."""

    def settle(self, seconds: float) -> None:
        """Take note of what was done elsewhere, for about so long."""

    def give_way(self, beside: bool) -> None:
        """Whether somebody computes while bytes are brought."""

    @property
    def has_news(self) -> bool:
        """Whether ``settle`` has something to do. Any thread."""
        return False

    def settle_idle(self) -> None:
        """Use it that nobody computes."""

    @property
    def wants_idle(self) -> bool:
        """Whether ``settle_idle`` has something to do."""
        return False

    def close(self, seconds: float) -> None:
        """Keep what outlives the process, for so long at most. Any thread, once there is no engine thread any more."""

    def hold(self, state: State) -> None:
        """Keep a state until it is let go of as often as it is held; only ``clear`` forgets it all the same."""
        self._held[state] += 1
        state.n_heirs += 1

    def let_go(self, state: State) -> None:
        if state not in self._held:
            # it is not kept any more
            return
        self._held[state] -= 1
        if not self._held[state]:
            del self._held[state]
        state.n_heirs -= 1
        self._wait(state)

    def let_go_of_all(self) -> None:
        """Nobody is to get anything any more."""
        for state, n in self._held.items():
            state.n_heirs -= n
            self._wait(state)
        self._held.clear()

    def unsaved(self, tokens: array[int], salt: bytes, invoked: Invocation | None = None) -> tuple[int, int]:
        """Which of the ``tokens`` in memory to save next, as [start, stop); (0, 0) for none."""
        if not self.budget:
            return 0, 0
        _, start = self._base(tokens, salt, invoked)
        stop = len(tokens)
        if self.in_parts and stop <= self.n_cuttable:
            stop = min(stop, start + 2 * PART)
            if invoked is not None and start + MIN_TOKENS <= invoked.at:
                stop = min(stop, invoked.at)
        if stop - start < MIN_TOKENS:
            return 0, 0
        return (start if self.in_parts else 0), stop

    def put(self, tokens: array[int], salt: bytes, saved: bytes, invoked: Invocation | None = None) -> State:
        """Keep the state of those of ``tokens`` that ``unsaved`` named, their end included. Where there is no room for
        it beside what is worth more it is gone already."""
        state = self._keep(tokens, salt, saved, invoked)
        self._shrink()
        return state

    def _keep(self, tokens: array[int], salt: bytes, saved: bytes, invoked: Invocation | None) -> State:
        """``put``, within the budget or beyond it."""
        base, start = self._base(tokens, salt, invoked)
        root = self._root(salt_at(len(tokens), salt, invoked))
        if base is not None and not self.in_parts:
            replaces = self.cuts_anywhere and base.stop == start and base.is_last and base.entry is None
            # what others go on from who invoke nothing, or something else, stays
            replaces = replaces and self._root(salt_at(start, salt, invoked)) == root
            if replaces and base not in self._held:
                # the longer state contains the shorter one
                self._counts["evictions_replaced"] += 1
                self._drop(base)
                start = 0
            base = None
        spares = len(tokens) - start
        n_bytes = len(saved) + spares * tokens.itemsize + STATE_BYTES
        state = State(saved, base, start if self.in_parts else 0, len(tokens), spares=spares, n_bytes=n_bytes)
        self._tree.add(tokens, root, state)
        if base is not None:
            base.n_heirs += 1
        self._counts["cache_saves"] += 1
        self._counts["cache_checkpoint_saves"] += self._is_checkpoint(state)
        self._count(state, 1)
        self._value(state)
        self._wait(state)
        self._note(RAM, state)
        self._leaves.forget_dropped(self.n_states)
        return state

    def clear(self) -> int:
        """Forget all states, those that are held too; how many bytes that freed. Giving a GB back to the system takes
        about 0.1 s."""
        n_bytes = self.used_bytes
        self.let_go_of_all()
        while (state := self._leaves.pop(_may_go)) is not None:
            self._drop(state)
        return n_bytes

    def forget(self, unwanted: Callable[[bytes], bool]) -> None:
        """Forget the states below ``unwanted`` salts, but those that somebody holds."""
        for root in self._tree.salts():
            if unwanted(self._salt_of(root)):
                for state in sorted(self._tree.below(root), key=lambda state: -state.stop):
                    if state.saved is not None and not state.n_heirs:
                        self._lose(state)

    def next_save(self, n_past: int, n_prompt: int, checkpoints: tuple[int, ...], invoked_at: int = 0) -> int:
        """At which length a sequence of ``n_past`` tokens is to be saved next, before it ends."""
        if not self.budget:
            return UNLIMITED
        return SavePoints(self.cuts_anywhere, self.in_parts).after(n_past, n_prompt, checkpoints, invoked_at)

    def _most_of(
        self, tokens: array[int], salt: bytes, length: int, invoked: Invocation | None
    ) -> tuple[State | None, int]:
        """The state that gives most of the first ``length`` tokens, and how much."""
        if invoked is not None and length > invoked.at:
            state, stop = self._tree.find(tokens, self._root(invoked.salt), length, self.n_cuttable)
            if stop > invoked.at:
                return state, stop
            length = invoked.at
        return self._tree.find(tokens, self._root(salt), length, self.n_cuttable)

    def _base(self, tokens: array[int], salt: bytes, invoked: Invocation | None) -> tuple[State | None, int]:
        """The state that a new one is to continue, and where: not one that gives only a few tokens."""
        state, stop = self._most_of(tokens, salt, len(tokens), invoked)
        if state is not None and stop - state.start < MIN_TOKENS:
            return state.base, state.start
        return state, stop

    def _is_checkpoint(self, state: State) -> bool:
        """Whether it is of use only as it is: it cannot be cut."""
        return state.stop > self.n_cuttable

    def _count(self, state: State, n: int) -> None:
        self.n_states += n
        self.n_checkpoints += n * self._is_checkpoint(state)
        self.used_bytes += n * state.n_bytes

    def _value(self, state: State) -> None:
        state.priority = self._leaves.worth(state, state.n_bytes)

    def _wait(self, state: State) -> None:
        """Put a state that none continues among those that may be evicted."""
        if not state.n_heirs:
            self._leaves.add(state, state)

    def _shrink(self) -> None:
        """Whatever is held was within the budget without what is new."""
        while self.used_bytes > self.budget and self._evict():
            pass

    def _evict(self) -> bool:
        """Whether there was a state to lose; the one that is worth least has gone."""
        if (state := self._leaves.pop(_may_go)) is None:
            return False
        self._counts["evictions_budget"] += 1
        self._lose(state)
        return True

    def _lose(self, state: State) -> None:
        """There is no room for its bytes."""
        self._drop(state)

    def _drop(self, state: State) -> None:
        self._count(state, -1)
        has_bytes = state.saved is not None
        self._tree.drop(state)
        if has_bytes:
            self._note_loss(RAM, state)
            self._leave_base(state)

    def _leave_base(self, state: State) -> None:
        """It is not in memory any more, so what it continues need not be for its sake."""
        if state.base is not None:
            state.base.n_heirs -= 1
            self._wait(state.base)

    def _note(self, tier: Tier, state: State) -> None:
        """Its bytes are there, in this tier."""
        if self.log is not None:
            tokens, root = self._tree.tokens(state)
            if not root:
                self.log.hold(tier, state, tokens, state.start)

    def _note_loss(self, tier: Tier, state: State) -> None:
        if self.log is not None:
            self.log.drop(tier, state)

    def _root(self, salt: bytes) -> bytes:
        """What the tree knows a salt by; b"" is anybody's, and no other's."""
        return salt

    def _salt_of(self, root: bytes) -> bytes:
        """The salt of it, b"" where nobody has named it since the start."""
        return root


def _may_go(state: State, _: State) -> bool:
    return state.kept and not state.n_heirs
