"""What /metrics says: the engine's values, by the table in ``llamafast.series``, and this process's.

They are read when somebody scrapes: a series costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from time import time
from typing import NamedTuple

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llamafast import __version__
from llamafast.series import (
    ALIASES,
    BLOCK,
    DISK_SERIES,
    DRAFT_SERIES,
    EMBEDDING_SERIES,
    ENGINE_SERIES,
    MEDIA_SERIES,
    RAM_SEQUENCE_CACHE,
    Histogram,
    Series,
)


class AdapterSeries(NamedTuple):
    """What there is to say of one adapter: how many requests had it, and how many of them run or wait."""

    id: int
    name: str | None
    n_requests: int
    running: int
    waiting: int


disable_created_metrics()  # type: ignore[no-untyped-call]
_process = CollectorRegistry()
ProcessCollector(registry=_process)
_requests = Counter(
    "llamafast:http_requests", "HTTP requests by route and status", ["path", "status"], registry=_process
)
_refused = Counter(
    "llamafast:requests_refused", "Requests that ended with an error, by route and code", ["path", "code"],
    registry=_process,
)  # fmt: skip
_spans = Counter("llamafast:spans", "Spans of traces, by what became of them", ["result"], registry=_process)


def observe_http(path: str, status: int) -> None:
    """Count one answered request. ``path`` is the route, not the URL: clients must not invent label values."""
    _requests.labels(path, status).inc()


def observe_refusal(path: str, code: str) -> None:
    """Count a request that ended with an error: its code, or its type where it has none."""
    _refused.labels(path, code).inc()


def observe_spans(result: str, n: int) -> None:
    """Count spans that were ``exported`` to the collector, that it did not take (``failed``), or that could not wait
    for it (``dropped``)."""
    _spans.labels(result).inc(n)


def render(
    counters: Mapping[str, float],
    histograms: Mapping[str, Histogram],
    *,
    model: str,
    aliases: Collection[str] = (),
    adapters: Sequence[AdapterSeries] = (),
    max_loras: int = 0,
) -> tuple[bytes, str]:
    """The exposition (text format 0.0.4) of the engine's values and this process's, and its content type.

    Series named in ``aliases`` carry the label ``model_name``, as their readers expect. Of ``max_loras`` sets of
    ``adapters`` sequences run at once.
    """
    registry = CollectorRegistry()
    registry.register(_EngineCollector(counters, histograms, model, aliases))
    registry.register(_AdapterCollector(adapters, max_loras, "vllm" in aliases))
    return generate_latest(registry) + render_process(), CONTENT_TYPE_PLAIN_0_0_4


def render_process() -> bytes:
    """What this process has of its own, in the same format."""
    return generate_latest(_process)


class _EngineCollector(Collector):
    def __init__(
        self, counters: Mapping[str, float], histograms: Mapping[str, Histogram], model: str, aliases: Collection[str]
    ) -> None:
        self._values = {**counters, **_derived(counters, histograms)}
        self._histograms = histograms
        self._model = model
        self._aliases = aliases

    def collect(self) -> Iterator[Metric]:
        about = {"version": __version__, "llama_cpp_python": version("llama-cpp-python"), "model": self._model}
        yield _info("llamafast:build_info", "1; what runs is in the labels", about)
        embedding = EMBEDDING_SERIES if EMBEDDING_SERIES[0].key in self._values else ()
        media = MEDIA_SERIES if MEDIA_SERIES[0].key in self._values else ()
        saved = DISK_SERIES if DISK_SERIES[0].key in self._values else RAM_SEQUENCE_CACHE
        yield from self._families((*ENGINE_SERIES, *saved, *embedding, *media, *DRAFT_SERIES), {})
        lengths = [self._values.get(f"draft_length_{n}", 0) for n in range(int(self._values.get("draft_most", -1)) + 1)]
        yield _counted("batch_server:draft_acceptance_length", "Decoded drafts by tokens that came", {}, {
            "accepted_tokens": lengths
        })  # fmt: skip
        for alias in self._aliases:
            yield from self._families(ALIASES[alias], {"model_name": self._model})
        if "vllm" in self._aliases:
            n_blocks = int(self._values["total_cells"]) // BLOCK
            blocks = {"model_name": self._model, "block_size": str(BLOCK), "num_gpu_blocks": str(n_blocks)}
            yield _info("vllm:cache_config_info", "1; KV cells, counted in blocks", blocks)
            name, text = "vllm:spec_decode_num_accepted_tokens_per_pos", "Drafted tokens that came, by their place"
            reached = [sum(lengths[n + 1 :]) for n in range(len(lengths) - 1)]
            yield _counted(name, text, {"model_name": self._model}, {"position": reached})

    def _families(self, table: Sequence[Series], labels: Mapping[str, str]) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for series in table:
            own = {**labels, **dict([series.label] if series.label else [])}
            names, values = list(own), list(own.values())
            if series.kind == "histogram":
                histogram = HistogramMetricFamily(series.name, series.text, labels=names)
                buckets, total = _cumulated(self._histograms[series.key])
                histogram.add_metric(values, buckets, total)
                yield histogram
                continue
            if (family := families.get(series.name)) is None:
                kind = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
                family = families[series.name] = kind(series.name, series.text, labels=names)
            family.add_metric(values, self._values[series.key] if series.key else 0)
        yield from families.values()


class _AdapterCollector(Collector):
    def __init__(self, adapters: Sequence[AdapterSeries], max_loras: int, aliased: bool) -> None:
        self._adapters = adapters
        self._max_loras = max_loras
        self._aliased = aliased

    def collect(self) -> Iterator[Metric]:
        if not self._adapters:
            return
        requests = CounterMetricFamily("llamafast:adapter_requests", "Requests by adapter", labels=["adapter", "id"])
        now = GaugeMetricFamily(
            "llamafast:adapter_requests_in_progress",
            "Of them, those that run or wait",
            labels=["adapter", "id", "state"],
        )
        for one in self._adapters:
            labels = [one.name or "", str(one.id)]
            requests.add_metric(labels, one.n_requests)
            now.add_metric([*labels, "running"], one.running)
            now.add_metric([*labels, "waiting"], one.waiting)
        yield from (requests, now)
        if self._aliased:
            about = {
                "max_lora": str(self._max_loras),
                "running_lora_adapters": ",".join(one.name or str(one.id) for one in self._adapters if one.running),
                "waiting_lora_adapters": ",".join(one.name or str(one.id) for one in self._adapters if one.waiting),
            }
            yield _info("vllm:lora_requests_info", "When this was so", about, time())


def _info(name: str, text: str, labels: Mapping[str, str], value: float = 1) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counted(
    name: str, text: str, labels: Mapping[str, str], counts: Mapping[str, Sequence[float]]
) -> CounterMetricFamily:
    """One counter for each of the ``counts``, labelled with its place."""
    ((place, values),) = counts.items()
    family = CounterMetricFamily(name, text, labels=[*labels, place])
    for n, value in enumerate(values):
        family.add_metric([*labels.values(), str(n)], value)
    return family


def _cumulated(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Prometheus's buckets: each counts what the ones before it count too."""
    bounds, counts, total = histogram
    buckets, so_far = [], 0
    for bound, n in zip([*(f"{bound:g}" for bound in bounds), "+Inf"], counts, strict=True):
        so_far += n
        buckets.append((bound, float(so_far)))
    return buckets, total


def _derived(counters: Mapping[str, float], histograms: Mapping[str, Histogram]) -> dict[str, float]:
    def ratio(part: str, whole: str) -> float:
        return counters[part] / counters[whole] if counters[whole] else 0.0

    return {
        "busy_per_step": ratio("sequences", "steps"),
        "prompt_rate": ratio("prompt_tokens", "prompt_seconds"),
        "generated_rate": ratio("generated_tokens", "generated_seconds"),
        "kv_usage": min(1.0, ratio("used_cells", "total_cells")),
        "free_cells": max(0.0, counters["total_cells"] - counters["used_cells"]),
        "unfinished": counters["running"] + counters["waiting"],
        "prefix_hits_ram": max(0, counters["prefix_hits_ram"] - counters.get("prefix_hits_disk", 0)),
        "one": 1.0,
        "prefix_hits_disk": counters.get("prefix_hits_disk", 0),
        "hits_here": max(0, counters["prefix_hits"] - counters.get("prefix_hits_disk", 0)),
        **_media(counters),
        "prefixes": counters["running"] + counters["cache_states"],
        "prompts_total": histograms["request_prompt_tokens"][2],
        **(_drafted(counters) if "draft_calls" in counters else dict.fromkeys((s.key for s in DRAFT_SERIES), 0.0)),
    }


def _media(counters: Mapping[str, float]) -> dict[str, float]:
    hits = sum(counters.get(f"media_{where}", 0) for where in ("hits_ram", "joined", "hits_disk"))
    return {"media_hits": hits, "media_queries": hits + counters.get("media_encodes", 0)}


def _drafted(counters: Mapping[str, float]) -> dict[str, float]:
    verified, accepted = counters["draft_tokens_verified"], counters["draft_tokens_accepted"]
    return {
        "draft_seconds": counters["draft_generate_seconds"] + counters["draft_process_seconds"],
        "draft_wasted": verified - accepted,
        "draft_rate": accepted / max(1, verified),
        "draft_mean": counters["draft_tokens_proposed"] / max(1, counters["draft_proposals"]),
        "draft_accepted_mean": accepted / max(1, counters["draft_batches_verified"]),
    }
