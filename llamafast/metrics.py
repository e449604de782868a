"""The one table of Prometheus series.

Series that the seed program has keep its names (prefixes ``llamacpp:`` and ``batch_server:``); new ones start with
``llamafast:``. The engine's values are read when somebody scrapes: counting costs nothing per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Series(NamedTuple):
    """One engine series: the key the engine counts under, its name on the wire, type and help."""

    key: str
    name: str
    kind: Literal["counter", "gauge"]
    text: str


ENGINE_SERIES = (
    Series("prompt_tokens", "llamacpp:prompt_tokens_total", "counter", "Prompt tokens decoded"),
    Series("prompt_seconds", "llamacpp:prompt_seconds_total", "counter", "Decode time spent on prompt tokens"),
    Series("generated_tokens", "llamacpp:tokens_predicted_total", "counter", "Tokens generated"),
    Series("generated_seconds", "llamacpp:tokens_predicted_seconds_total", "counter", "Decode time of generation"),
    Series("steps", "llamacpp:n_decode_total", "counter", "Calls of llama_decode"),
    Series("rows_max", "llamacpp:n_tokens_max", "gauge", "Most rows a step has had"),
    Series("busy_per_step", "llamacpp:n_busy_slots_per_decode", "gauge", "Mean number of sequences in a step"),
    Series("prompt_rate", "llamacpp:prompt_tokens_seconds", "gauge", "Prompt tokens per second of prompt time"),
    Series("generated_rate", "llamacpp:predicted_tokens_seconds", "gauge", "Tokens per second of generation time"),
    Series("running", "llamacpp:requests_processing", "gauge", "Sequences running"),
    Series("waiting", "llamacpp:requests_deferred", "gauge", "Sequences waiting"),
    Series("steps", "batch_server:scheduler_step_calls_total", "counter", "Steps"),
    Series("step_seconds", "batch_server:scheduler_step_seconds_total", "counter", "Wall time in steps"),
    Series("sample_seconds", "batch_server:sample_seconds_total", "counter", "Sampling, detokenising, stop matching"),
    Series("submitted", "batch_server:requests_submitted_total", "counter", "Sequences submitted"),
    Series("admitted", "batch_server:requests_admitted_total", "counter", "Sequences admitted, also after preemption"),
    Series("completed", "batch_server:requests_completed_total", "counter", "Sequences that finished"),
    Series("cancelled", "batch_server:requests_cancelled_total", "counter", "Sequences cancelled"),
    Series("failed", "batch_server:requests_failed_total", "counter", "Sequences that failed"),
    Series("running", "batch_server:claimed_sequences", "gauge", "Sequence ids in use"),
    Series("free_sequences", "batch_server:unused_sequences", "gauge", "Sequence ids free"),
    Series("preempted", "llamafast:preemptions_total", "counter", "Sequences sent back to the queue for room"),
    Series("rows", "llamafast:rows_total", "counter", "Rows of all steps"),
    Series("decode_seconds", "llamafast:decode_seconds_total", "counter", "Wall time in llama_decode"),
    Series("prefix_queries", "llamafast:prefix_cache_queries_total", "counter", "Prompt tokens looked up for reuse"),
    Series("prefix_hits", "llamafast:prefix_cache_hits_total", "counter", "Prompt tokens reused, not computed"),
    Series("prefix_hits_running", "llamafast:prefix_cache_hits_running_total", "counter", "Of them, of running ones"),
    Series("prefix_hits_ram", "llamafast:prefix_cache_hits_ram_total", "counter", "Of them, restored from RAM"),
    Series("cache_states", "llamafast:prefix_cache_states", "gauge", "Parts of prefixes and checkpoints in RAM"),
    Series("cache_bytes", "llamafast:prefix_cache_bytes", "gauge", "Bytes of them"),
    Series("cache_restores", "llamafast:prefix_cache_restores_total", "counter", "Prefixes found in RAM"),
    Series("cache_evictions", "llamafast:prefix_cache_evictions_total", "counter", "Parts evicted for the budget"),
    Series("forks", "llamafast:prefix_cache_forks_total", "counter", "Prefixes lent by a running sequence"),
    Series("used_cells", "llamafast:kv_cells_used", "gauge", "KV cells in use"),
    Series("total_cells", "llamafast:kv_cells", "gauge", "KV cells"),
)
# Only of models that embed.
EMBEDDING_SERIES = (
    Series("embedding_inputs", "llamafast:embedding_inputs_total", "counter", "Inputs embedded or ranked"),
    Series("embedding_tokens", "llamafast:embedding_tokens_total", "counter", "Tokens of them"),
    Series("embedding_steps", "llamafast:embedding_steps_total", "counter", "Batches of them"),
    Series("embedding_seconds", "llamafast:embedding_seconds_total", "counter", "Wall time in these batches"),
)

disable_created_metrics()  # type: ignore[no-untyped-call]
_http = CollectorRegistry()
_requests = Counter("llamafast:http_requests", "HTTP requests by route and status", ["path", "status"], registry=_http)


def observe_http(path: str, status: int) -> None:
    """Count one answered request. ``path`` is the route, not the URL: clients must not invent label values."""
    _requests.labels(path, status).inc()


def render(counters: Mapping[str, float]) -> tuple[bytes, str]:
    """The exposition (text format 0.0.4) of the engine's counters and the HTTP series, and its content type."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(counters))
    return generate_latest(registry) + generate_latest(_http), CONTENT_TYPE_PLAIN_0_0_4


class _EngineCollector(Collector):
    def __init__(self, counters: Mapping[str, float]) -> None:
        self.values = {**counters, **_rates(counters)}

    def collect(self) -> Iterator[Metric]:
        embedding = EMBEDDING_SERIES if EMBEDDING_SERIES[0].key in self.values else ()
        for series in (*ENGINE_SERIES, *embedding):
            family = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
            yield family(series.name, series.text, value=self.values[series.key])


def _rates(counters: Mapping[str, float]) -> dict[str, float]:
    def ratio(part: str, whole: str) -> float:
        return counters[part] / counters[whole] if counters[whole] else 0.0

    return {
        "busy_per_step": ratio("sequences", "steps"),
        "prompt_rate": ratio("prompt_tokens", "prompt_seconds"),
        "generated_rate": ratio("generated_tokens", "generated_seconds"),
    }
