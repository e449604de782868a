"""/metrics of several models: what each child tells, with the label ``model``, and what the parent counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from llamafast.pool.member import Member, State

_COUNTS = {
    "loads": "Times a process was started for it",
    "evictions": "Times it made room for another one",
    "deaths": "Times its process ended, or did not load it, though nobody wanted that",
}


def merged(told: Mapping[str, bytes], own: bytes, members: Iterable[Member]) -> tuple[bytes, str]:
    """The exposition (text format 0.0.4) and its content type. ``told`` is what children say, by model, ``own`` what
    this process says of itself."""
    registry = CollectorRegistry()
    registry.register(_Merged(told, own, tuple(members)))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Merged(Collector):
    def __init__(self, told: Mapping[str, bytes], own: bytes, members: tuple[Member, ...]) -> None:
        self._told = told
        self._own = own
        self._members = members

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        sources: list[tuple[str | None, bytes]] = [(None, self._own), *self._told.items()]
        for model, text in sources:
            for family in text_string_to_metric_families(text.decode()):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for name, labels, value, *_ in family.samples:
                    known.add_sample(name, labels if model is None else {**labels, "model": model}, value)
        yield from families.values()
        yield from self._pool()

    def _pool(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("llamafast:model_state", "1 for the state that it is in", labels=["model", "state"])
        for member in self._members:
            for word in dict.fromkeys(one.word for one in State):
                state.add_metric([member.name, word], float(member.state.word == word))
            state.add_metric([member.name, "failed"], float(member.failed))
        yield state
        taken = GaugeMetricFamily("llamafast:model_bytes", "Host memory that it counts as", labels=["model"])
        waiting = GaugeMetricFamily("llamafast:model_requests_waiting", "Requests that wait for it", labels=["model"])
        for member in self._members:
            taken.add_metric([member.name], member.n_bytes if member.holds is not None else 0)
            waiting.add_metric([member.name], len(member.waiting))
        yield from (taken, waiting)
        for key, text in _COUNTS.items():
            family = CounterMetricFamily(f"llamafast:model_{key}", text, labels=["model"])
            for member in self._members:
                family.add_metric([member.name], member.counts[key])
            yield family
