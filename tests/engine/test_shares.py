"""The arbiter alone: fake claimants, and time that passes when somebody computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast.engine import shares as shares_module
from llamafast.engine.pace import Pace
from llamafast.engine.shares import Shares

PACE = Pace()
STEPS = st.sampled_from([0.01, 0.035, 0.3])
SLOWNESS = st.sampled_from([0.5, 1.0, 3.0])
FULL_BATCHES = st.sampled_from([0.02, 0.1, 10.0])


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self):
        return self.now


@dataclass(eq=False)
class FakeClaimant:
    """A step takes what it is given, with one long input more, a full batch at most and a millisecond at least. It has
    work unless ``away`` says otherwise."""

    clock: Clock
    slowness: float = 1.0
    full_batch: float = 10.0
    away: bool = False
    seconds: float = 0.0
    longest: float = 0.0

    @property
    def has_work(self):
        return not self.away

    def step(self, seconds):
        assert seconds > 0
        assert self.has_work
        took = max(0.001, min(seconds, self.full_batch) * self.slowness)
        self.clock.now += took
        self.seconds += took
        self.longest = max(self.longest, took)


@dataclass(eq=False)
class FakeStreams:
    """A step takes as long as it is told, and leaves as much to spare as it took, or as ``gap`` says. ``pauses`` are
    the times between its steps."""

    clock: Clock
    each: float = 0.03
    gap: float | None = None
    away: bool = False
    spare: float = 0.0
    seconds: float = 0.0
    ended: float | None = None
    pauses: list[float] = field(default_factory=list)

    @property
    def has_work(self):
        return not self.away

    def generate(self, *, alone):
        if self.away:
            self.ended = None
            return 0.0
        if self.ended is not None:
            self.pauses.append(self.clock.now - self.ended)
        self.clock.now += self.each
        self.seconds += self.each
        self.ended = self.clock.now
        self.spare = max(self.each, 0.05 - self.each) if self.gap is None else self.gap
        return self.each


class House:
    """Streams and claimants under one arbiter."""

    def __init__(self, clock, streams, claimants):
        self.clock = clock
        self.streams = streams
        self.claimants = claimants
        self.shares = Shares(claimants, PACE)

    def live(self, rounds):
        for _ in range(rounds):
            self.shares.round(self.streams)


@pytest.fixture
def clock():
    """Arbiters read the time of one clock after another: a property's examples share the fixture, not the clock."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(shares_module, "time", clock)
        yield clock


def house(clock, each, shapes, **streams):
    return House(clock, FakeStreams(clock, each, **streams), [FakeClaimant(clock, *shape) for shape in shapes])


@settings(max_examples=50)
@given(STEPS, st.lists(st.tuples(SLOWNESS, FULL_BATCHES), min_size=1, max_size=3))
def test_each_gets_as_much_as_the_others_while_all_have_work(each, shapes):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(shares_module, "time", clock)
        # a gap wide enough for everybody's share
        all_of_them = house(clock, each, shapes, gap=4 * each + 0.4)
        all_of_them.live(300)
    had = [all_of_them.streams.seconds, *(claimant.seconds for claimant in all_of_them.claimants)]
    longest = max(each, *(claimant.longest for claimant in all_of_them.claimants))
    assert max(had) - min(had) <= PACE.beside_seconds + 2 * longest


@settings(max_examples=50)
@given(st.lists(st.tuples(SLOWNESS, FULL_BATCHES), min_size=2, max_size=4))
def test_without_streams_the_others_share_alike(shapes):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(shares_module, "time", clock)
        others = house(clock, 0.03, shapes)
        others.streams.away = True
        others.live(300)
    had = [claimant.seconds for claimant in others.claimants]
    assert max(had) - min(had) <= max(claimant.longest for claimant in others.claimants) + 1e-9


@settings(max_examples=50)
@given(STEPS, st.floats(0.001, 0.5), st.lists(st.tuples(SLOWNESS, FULL_BATCHES), min_size=1, max_size=3))
def test_pauses_are_bounded_however_many_have_work(each, gap, shapes):
    """By what the streams had to spare, or by the shortest turn that is worth it; a step that takes longer than it was
    asked to is the claimant's own doing."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(shares_module, "time", clock)
        crowd = house(clock, each, shapes, gap=gap)
        crowd.live(200)
    most = max(gap, PACE.least_beside_seconds)
    slowest = max(slowness for slowness, _ in shapes)
    assert max(crowd.streams.pauses) <= most * max(1.0, slowest) * 1.5 + 1e-9


@settings(max_examples=50)
@given(
    STEPS,
    st.lists(st.tuples(SLOWNESS, FULL_BATCHES), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 30)), max_size=8),
)
def test_nobody_saves_up_time_by_being_away(each, shapes, comings):
    """Whoever came and went: from now on all get the same, but for what is too little for a step."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(shares_module, "time", clock)
        guests = house(clock, each, shapes, gap=4 * each + 0.4)
        everybody = [guests.streams, *guests.claimants]
        for who, away, rounds in comings:
            everybody[who % len(everybody)].away = away
            guests.live(rounds)
        for one in everybody:
            one.away = False
        before = [one.seconds for one in everybody]
        guests.live(200)
    had = [one.seconds - earlier for one, earlier in zip(everybody, before, strict=True)]
    longest = max([each, *(claimant.longest for claimant in guests.claimants)])
    assert max(had) - min(had) <= PACE.beside_seconds + 2 * longest


def test_who_is_alone_gets_everything(clock):
    generation = House(clock, FakeStreams(clock), [FakeClaimant(clock, away=True)])
    generation.live(100)
    assert generation.streams.seconds == pytest.approx(clock.now)
    assert max(generation.streams.pauses) == 0
    one = House(clock, FakeStreams(clock, away=True), [FakeClaimant(clock), FakeClaimant(clock, away=True)])
    started = clock.now
    one.live(100)
    assert one.claimants[0].seconds == pytest.approx(clock.now - started)
    assert one.claimants[0].longest == PACE.alone_seconds


def test_who_comes_back_has_not_lost_what_it_had_too_much(clock):
    """Else it would pay to leave for a moment after each long step."""
    restless = House(clock, FakeStreams(clock, 0.005), [FakeClaimant(clock, slowness=3)])
    rounds = 0
    while clock.now < 100:
        rounds += 1
        restless.claimants[0].away = rounds % 3 == 1
        restless.shares.round(restless.streams)
    assert 0.95 < restless.streams.seconds / restless.claimants[0].seconds < 1.3


def test_generation_that_comes_is_not_held_up_by_others_that_wait(clock):
    busy = House(clock, FakeStreams(clock, 0.3, away=True), [FakeClaimant(clock)])
    busy.live(60)
    busy.streams.away = False
    busy.shares.round(busy.streams)
    busy.shares.round(busy.streams)
    assert busy.streams.pauses == [pytest.approx(0.3)]


def test_streams_run_on_until_somebody_else_has_work(clock):
    asked = []

    class Streams(FakeStreams):
        def generate(self, *, alone):
            asked.append(alone)
            return super().generate(alone=alone)

    mixed = House(clock, Streams(clock), [FakeClaimant(clock, away=True)])
    mixed.shares.round(mixed.streams)
    mixed.claimants[0].away = False
    mixed.shares.round(mixed.streams)
    assert asked == [True, False]
    assert mixed.shares.has_work


def test_others_take_no_more_than_a_step_has_to_spare(clock):
    small = House(clock, FakeStreams(clock, gap=0.03), [FakeClaimant(clock, full_batch=0.004)])
    small.live(300)
    assert 0.01 < max(small.streams.pauses) <= 0.034


def test_too_little_for_a_step_is_saved_up(clock):
    """Where prompts take most of the gap."""
    tight = House(clock, FakeStreams(clock, 0.068, gap=0.0035), [FakeClaimant(clock)])
    tight.live(100)
    assert tight.claimants[0].seconds == pytest.approx(100 * 0.0035, rel=0.1)
    assert tight.claimants[0].longest <= 0.025
