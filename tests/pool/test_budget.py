"""What fits beside what: laws of the policy, whatever models there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llamafast.pool.budget import Evict, Fits, Holder, Never, Phase, Wait, room_for

GB = 2**30

HOLDERS = st.lists(
    st.builds(
        Holder,
        name=st.uuids().map(str),
        phase=st.sampled_from(Phase),
        n_bytes=st.integers(0, 10),
        busy=st.booleans(),
        used_at=st.floats(0, 100),
    ),
    max_size=8,
)


def loaded(name: str, n_bytes: int, used_at: float, *, busy: bool = False) -> Holder:
    return Holder(name, Phase.LOADED, n_bytes, busy, used_at)


def test_what_fits_pushes_nobody_out() -> None:
    """ollama#13227: evicted although memory is free."""
    holders = [loaded(f"m{i}", GB, i) for i in range(8)]
    assert room_for(2 * GB, holders, 10 * GB) == Fits()


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    holders = [loaded("c", 4, 3), loaded("a", 1, 1), loaded("b", 4, 2)]
    assert room_for(2, holders, 10) == Evict(("a",))
    assert room_for(3, holders, 10) == Evict(("b",))  # a alone would not do, and b alone does
    assert room_for(6, holders, 10) == Evict(("a", "b"))
    assert room_for(11, holders, 10) == Never()


def test_who_is_busy_or_loading_is_waited_for() -> None:
    """llama.cpp#21678: evicted while it answers, or loads."""
    assert room_for(5, [loaded("a", 6, 1, busy=True)], 10) == Wait(("a",))
    assert room_for(5, [Holder("a", Phase.LOADING, 6, False, 1)], 10) == Wait(())


def test_memory_that_is_coming_back_is_waited_for() -> None:
    """llama.cpp#23668: the new model loaded before the old one's memory was back."""
    going = Holder("a", Phase.UNLOADING, 6, False, 1)
    assert room_for(5, [going, loaded("b", 4, 2)], 10) == Wait(())


def test_a_process_that_waits_itself_counts_and_nobody_goes_for_it() -> None:
    weighed = Holder("a", Phase.WEIGHED, 2, False, 0)
    assert room_for(9, [weighed], 10) == Wait(())
    assert room_for(8, [weighed], 10) == Fits()
    assert room_for(6, [weighed, loaded("b", 4, 2)], 10) == Wait(())
    assert room_for(7, [weighed, loaded("b", 4, 2)], 10) == Evict(("b",))


@given(st.integers(0, 20), HOLDERS, st.integers(0, 20))
def test_laws(n_bytes: int, holders: list[Holder], max_bytes: int) -> None:
    by_name = {holder.name: holder for holder in holders}
    total = sum(holder.n_bytes for holder in holders)
    match room_for(n_bytes, holders, max_bytes):
        case Never():
            assert n_bytes > max_bytes
        case Fits():
            assert total + n_bytes <= max_bytes
        case Evict(names):
            chosen = [by_name[name] for name in names]
            assert all(one.phase is Phase.LOADED and not one.busy for one in chosen)
            going = sum(one.n_bytes for one in holders if one.phase in (Phase.UNLOADING, Phase.WEIGHED))
            rest = total - going - sum(one.n_bytes for one in chosen)
            assert rest + n_bytes <= max_bytes < total + n_bytes
            # nobody goes in vain
            assert all(rest + one.n_bytes + n_bytes > max_bytes for one in chosen if one.n_bytes)
        case Wait(names):
            assert n_bytes <= max_bytes < total + n_bytes
            assert all(by_name[name].phase is Phase.LOADED for name in names)
