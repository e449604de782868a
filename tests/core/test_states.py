"""The tree of saved states."""

from __future__ import annotations

from array import array

import pytest

from llamafast._core.states import PrefixTree, State


def test_a_tree_takes_arrays_of_tokens_and_states_that_end_with_them():
    tree, tokens = PrefixTree(), array("i", range(100))
    with pytest.raises(TypeError, match="int32"):
        tree.find(array("q", range(100)), b"", 100, 0)
    for length in (-1, 101):
        with pytest.raises(ValueError, match=str(length)):
            tree.find(tokens, b"", length, 0)
    state = State(b"state", None, 0, 100, spares=100, n_bytes=5)
    with pytest.raises(ValueError, match="100"):
        tree.add(tokens[:99], b"", state)
    assert tree.empty
    tree.add(tokens, b"", state)
    with pytest.raises(ValueError, match="100"):
        tree.add(tokens, b"", state)
    assert (tree.empty, state.kept, state.is_last) == (False, True, True)
    assert tree.find(tokens, b"", 100, 0) == (state, 100)
    assert tree.find(tokens, b"", 99, 0) == tree.find(tokens, b"salt", 100, 100) == (None, 0)
    tree.drop(state)
    assert (tree.empty, state.kept, state.saved) == (True, False, b"")
    with pytest.raises(ValueError, match="not kept"):
        tree.drop(state)


def test_a_long_chain_of_states_is_freed_without_a_deep_stack():
    state = None
    for _ in range(300_000):
        state = State(b"state", state, 0, 1, spares=1, n_bytes=5)
    del state
