"""Which inputs of whose requests are embedded next, and what becomes of those that fail or are cancelled."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from llamafast._core.step import NO_OUTPUT
from llamafast.engine.embeddings import EmbeddingQueue, EmbeddingRequest
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import (
    EngineFailure,
)


@dataclass(eq=False)
class FakeInput:
    name: str
    n_tokens: int = 1
    vectors: bytes | None = b"vector"
    group: int = 0


@dataclass
class FakeEmbedder:
    """Takes ``room`` tokens and finishes everything in one step, unless a code says otherwise."""

    room: int = 4
    codes: list = field(default_factory=list)
    running: list = field(default_factory=list)
    steps: list = field(default_factory=list)

    def fits(self, input):
        return sum(other.n_tokens for other in self.running) + input.n_tokens <= self.room

    def add(self, input):
        assert self.fits(input)
        self.running.append(input)

    def remove(self, input):
        self.running.remove(input)

    def clear(self):
        self.running.clear()

    def step(self, seconds):
        self.steps.append([input.name for input in self.running])
        return self.codes.pop(0) if self.codes else 0

    def take_finished(self):
        finished, self.running = self.running, []
        return finished


class Answer:
    """A future that needs no event loop."""

    def __init__(self):
        self.result = None

    def done(self):
        return self.result is not None

    def set_result(self, value):
        self.result = "done"

    def set_exception(self, error):
        self.result = error


def request_of(name: str, n_inputs: int, n_tokens: int = 1, tenant: Tenant = ANYBODY) -> EmbeddingRequest:
    return EmbeddingRequest([FakeInput(f"{name}{i}", n_tokens) for i in range(n_inputs)], Answer(), tenant)


def queue_of(embedder: FakeEmbedder) -> EmbeddingQueue:
    return EmbeddingQueue(embedder, lambda settled: [request.settle(error) for request, error in settled])


def test_each_request_gives_one_input_in_turn():
    queue = queue_of(FakeEmbedder())
    requests = [request_of("a", 5), request_of("b", 1), request_of("c", 2)]
    for request in requests:
        queue.enqueue(request)
    assert queue.n_waiting == 3
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "b0", "c0", "a1"], ["c1", "a2", "a3", "a4"]]
    assert [request.done.result for request in requests] == ["done"] * 3
    assert queue.n_waiting == 0


def test_a_tenants_inputs_wait_for_its_bound_in_their_turn():
    queue = queue_of(FakeEmbedder())
    alice = Tenant("alice", max_running=1)
    for request in [request_of("a", 3, tenant=alice), request_of("b", 1, tenant=alice), request_of("c", 6)]:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "c0", "c1", "c2"], ["b0", "c3", "c4", "c5"], ["a1"], ["a2"]]
    assert queue.n_waiting == 0


def test_a_failed_step_fails_who_was_in_it_and_nobody_else():
    queue = queue_of(FakeEmbedder(room=2, codes=[-3]))
    requests = [request_of("a", 2), request_of("b", 1), request_of("c", 1)]
    for request in requests:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert [type(request.done.result) for request in requests] == [EngineFailure, EngineFailure, str]
    assert requests[0].done.result.message == "llama_decode failed with code -3"


def test_a_vector_that_is_not_there_is_told_as_that():
    queue = queue_of(FakeEmbedder(codes=[NO_OUTPUT]))
    request = request_of("a", 1)
    queue.enqueue(request)
    queue.step(1.0)
    assert request.done.result.message == "llama.cpp computed a row and gave nothing of it"


def test_a_vector_that_is_not_finite_fails_its_request_only():
    queue = queue_of(FakeEmbedder())
    bad, good = request_of("a", 3), request_of("b", 2)
    bad.inputs[0].vectors = None
    queue.enqueue(bad)
    queue.enqueue(good)
    while queue.has_work:
        queue.step(1.0)
    assert isinstance(bad.done.result, EngineFailure)
    assert good.done.result == "done"


def test_groups_of_adapters_run_beside_so_many_others_and_are_passed_once():
    def asked(name, n_inputs, group):
        request = request_of(name, n_inputs)
        for input in request.inputs:
            input.group = group
        return request

    queue = EmbeddingQueue(FakeEmbedder(room=3), lambda settled: None, max_groups=1)
    for request in [asked("a", 4, 0), asked("b", 2, 1), asked("c", 1, 0)]:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "c0", "a1"], ["b0", "b1"], ["a2", "a3"]]
    # what runs on for many steps does not let its own group go on for ever
    queue = EmbeddingQueue(FakeEmbedder(room=9), lambda settled: None, max_groups=2)
    stays = asked("stays", 1, 0)
    queue.embedder.take_finished = list
    for request in [stays, asked("x", 1, 1), asked("waits", 1, 2), asked("y", 1, 1)]:
        queue.enqueue(request)
    queue.step(1.0)
    queue.enqueue(asked("z", 1, 0))
    queue.step(1.0)
    assert queue.embedder.steps == [["stays0", "x0", "y0"]] * 2


TENANTS = [ANYBODY, Tenant("alice", max_running=1), Tenant("bob", max_running=3)]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.sampled_from(TENANTS)), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.lists(st.sampled_from([0, 0, 0, 2, -1]), max_size=6),
)
def test_every_request_is_settled_once_whatever_happens(shapes, cancelled, codes):
    embedder = FakeEmbedder(room=5, codes=list(codes))
    settled: list[EmbeddingRequest] = []
    queue = EmbeddingQueue(embedder, lambda batch: settled.extend(request for request, _ in batch))
    requests = [request_of(f"{i}.", *shape) for i, shape in enumerate(shapes)]
    for request in requests:
        queue.enqueue(request)
    queue.step(1.0)
    for i in cancelled & set(range(len(requests))):
        requests[i].closed = True
    for _ in range(200):
        if not queue.has_work:
            break
        queue.step(1.0)
    owners = {input.name: request.tenant for request in requests for input in request.inputs}
    for tenant in TENANTS[1:]:
        assert all(sum(owners[name] is tenant for name in step) <= tenant.max_running for step in embedder.steps)
    assert not queue.has_work
    assert not embedder.running
    assert queue.n_waiting == 0
    assert len(settled) == len(set(settled))
    assert {id(r) for r in requests} - {id(r) for r in settled} <= {
        id(requests[i]) for i in cancelled if i < len(requests)
    }
