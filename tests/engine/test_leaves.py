"""Which saved state goes first."""

from __future__ import annotations

from typing import Any

from llamafast._core.states import State
from llamafast.engine.leaves import Leaves


def state(n_tokens: int, n_bytes: int = 1000, uses: int = 1) -> State:
    one = State(b"", None, 0, n_tokens, spares=n_tokens, n_bytes=n_bytes)
    one.uses = uses
    return one


def enter(leaves: Leaves[State], one: State) -> State:
    one.priority = leaves.worth(one, one.n_bytes)
    leaves.add(one, one)
    return one


def any_may(one: State, place: Any) -> bool:
    return True


def test_what_spares_least_for_its_bytes_and_uses_goes_first():
    leaves: Leaves[State] = Leaves()
    often = enter(leaves, state(100, uses=3))
    short = enter(leaves, state(50))
    large = enter(leaves, state(100, n_bytes=10_000))
    assert [leaves.pop(any_may) for _ in range(4)] == [large, short, often, None]


def test_what_is_new_is_worth_more_than_what_went_before_it():
    leaves: Leaves[State] = Leaves()
    old = enter(leaves, state(100))
    assert leaves.pop(any_may) is old
    once, new = enter(leaves, state(10)), enter(leaves, state(20))
    assert once.priority > old.priority
    assert [leaves.pop(any_may), leaves.pop(any_may)] == [once, new]


def test_the_age_does_not_fall_with_what_has_lost_its_heirs():
    """A state that others continued was valued when it was of use, maybe long ago."""
    leaves: Leaves[State] = Leaves()
    continued = state(10)
    continued.priority = leaves.worth(continued, continued.n_bytes)
    enter(leaves, state(100))
    leaves.pop(any_may)
    leaves.add(continued, continued)
    age = leaves.age
    assert leaves.pop(any_may) is continued
    assert leaves.age == age


def test_its_turn_comes_by_what_it_is_worth_by_then():
    leaves: Leaves[State] = Leaves()
    one, other = enter(leaves, state(10)), enter(leaves, state(20))
    one.uses = 9
    one.priority = leaves.worth(one, one.n_bytes)
    assert [leaves.pop(any_may), leaves.pop(any_may)] == [other, one]


def test_nothing_goes_that_is_worth_more_than_what_it_would_make_room_for():
    leaves: Leaves[State] = Leaves()
    one = enter(leaves, state(10))
    assert leaves.pop(any_may, one.priority / 2) is None
    assert one.waits
    assert leaves.pop(any_may, one.priority) is one


def test_what_may_not_go_is_no_leaf_until_it_is_added_again():
    leaves: Leaves[State] = Leaves()
    one = enter(leaves, state(10))
    assert leaves.pop(lambda state, place: False) is None
    assert (len(leaves), one.waits) == (0, False)
    leaves.add(one, one)
    leaves.add(one, one)
    assert [found for found, _ in leaves] == [one]
