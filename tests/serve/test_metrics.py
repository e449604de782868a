"""What /metrics and the request log say of a real server, and that the documents name only what is there."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server import Server, serving
from llamafast.pool.exposition import merged
from llamafast.series import (
    ALIASES,
    DISK_SERIES,
    DRAFT_SERIES,
    EMBEDDING_SERIES,
    ENGINE_SERIES,
    MEDIA_SERIES,
    RAM_SEQUENCE_CACHE,
)
from serve.conftest import model_config
from serve.test_robustness import abort, exchange, leave_early, request_bytes

DOCS = Path(__file__).parents[2] / "docs"
# only where there are adapters
OF_SOME = {
    "llamafast:adapter_requests_total",
    "llamafast:adapter_requests_in_progress",
    "vllm:lora_requests_info",
    "llamafast:requests_refused_total",
    "llamafast:spans_total",
}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# The exposition of the program this server's names come from, but for what it shows with MTP only.
EXAMPLE_SERIES = {
    "llamacpp:prompt_tokens_total", "llamacpp:prompt_seconds_total", "llamacpp:tokens_predicted_total",
    "llamacpp:tokens_predicted_seconds_total", "batch_server:scheduler_step_seconds_total",
    "batch_server:process_batch_seconds_total", "batch_server:sample_seconds_total",
    "batch_server:draft_seconds_total", "batch_server:draft_process_seconds_total",
    "batch_server:draft_generate_seconds_total", "batch_server:draft_sampled_batch_seconds_total",
    "batch_server:draft_process_calls_total", "batch_server:draft_generate_calls_total",
    "batch_server:draft_sampled_batch_calls_total", "llamacpp:n_decode_total",
    "batch_server:scheduler_step_calls_total", "batch_server:process_batch_calls_total",
    "batch_server:sample_calls_total", "llamacpp:n_tokens_max", "llamacpp:n_busy_slots_per_decode",
    "llamacpp:prompt_tokens_seconds", "llamacpp:predicted_tokens_seconds", "llamacpp:requests_processing",
    "llamacpp:requests_deferred", "batch_server:requests_submitted_total", "batch_server:requests_admitted_total",
    "batch_server:requests_completed_total", "batch_server:requests_cancelled_total",
    "batch_server:requests_failed_total", "batch_server:active_completions", "batch_server:claimed_sequences",
    "batch_server:free_sequences", "batch_server:unused_sequences", "batch_server:checkpoint_entries",
    "batch_server:checkpoint_hits_total", "batch_server:checkpoint_saves_total",
    "batch_server:checkpoint_evictions_total", "batch_server:sequence_cache_hits_total",
    "batch_server:sequence_cache_save_requests_total", "batch_server:sequence_cache_load_failures_total",
    "batch_server:sequence_cache_lookup_failures_total", "batch_server:sequence_cache_save_failures_total",
    "batch_server:sequence_cache_tokens_loaded_total", "batch_server:draft_proposals_total",
    "batch_server:draft_tokens_proposed_total", "batch_server:draft_tokens_accepted_total",
    "batch_server:draft_tokens_rejected_total", "batch_server:draft_batches_verified_total",
    "batch_server:draft_target_tokens_verified_total", "batch_server:draft_target_tokens_wasted_total",
    "batch_server:draft_tokens_reused_as_pending_total", "batch_server:draft_acceptance_rate",
    "batch_server:draft_average_proposed_tokens", "batch_server:draft_average_verified_acceptance_length",
    "batch_server:radix_trie_sequences", "batch_server:radix_trie_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[Server]:
    """A server nobody else counts on, with every name there is."""

    def config(port: int) -> dict[str, object]:
        config = model_config(tiny_model("tiny-llama"), port, alias="tiny")
        return config | {"server": {"port": port, "metrics_aliases": ["vllm"]}, "cache": {"ram_bytes": 0}}

    with serving(config, None) as server:
        yield server


async def scrape(port: int) -> Samples:
    status, body = await exchange(port, request_bytes("/metrics", b"", "GET"))
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def plain(samples: Samples, name: str) -> float:
    return samples[name, frozenset()]


def named(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def complete(port: int, tokens: int = 10, prompt: int = 8, **fields: object) -> None:
    body = {"prompt": list(range(40, 40 + prompt)), "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    status, answer = await exchange(port, request_bytes("/v1/completions", json.dumps(body | fields).encode()))
    assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, tokens)


async def test_ten_requests_of_ten_tokens(server: Server) -> None:
    before = await scrape(server.port)
    await asyncio.gather(*(complete(server.port) for _ in range(10)))
    after = await scrape(server.port)

    def grown(name: str, **labels: str) -> float:
        return named(after, name, **labels) - before.get((name, frozenset(labels.items())), 0)

    async with asyncio.timeout(30):
        # a request is counted once its last byte is on its way
        counted: Any = "llamafast:http_requests_total", frozenset({("path", "/v1/completions"), ("status", "200")})
        while after.get(counted, 0) - before.get(counted, 0) < 10:
            after = await scrape(server.port)
    assert grown("llamacpp:tokens_predicted_total") == 100
    assert grown("llamafast:sequences_finished_total", reason="length") == 10
    assert grown("llamafast:http_requests_total", path="/v1/completions", status="200") == 10
    for name, count in {
        "time_to_first_token_seconds": 10, "inter_token_seconds": 90, "end_to_end_seconds": 10, "queue_seconds": 10,
        "prefill_seconds": 10, "generation_seconds": 10, "inference_seconds": 10,
        "request_prompt_tokens": 10, "request_generated_tokens": 10, "request_max_tokens": 10, "request_choices": 10,
    }.items():  # fmt: skip
        assert grown(f"llamafast:{name}_count") == grown(f"llamafast:{name}_bucket", le="+Inf") == count
    assert grown("llamafast:request_prompt_tokens_sum") == 80
    assert grown("llamafast:request_generated_tokens_sum") == 100
    assert grown("llamafast:request_max_tokens_sum") == 100
    assert grown("llamafast:request_choices_sum") == 10
    queued, prefill, generation, inference, whole = (
        grown(f"llamafast:{name}_seconds_sum") for name in ("queue", "prefill", "generation", "inference", "end_to_end")
    )
    assert prefill > 0
    assert generation > 0
    assert prefill + generation == pytest.approx(inference)
    assert queued + inference == pytest.approx(whole)
    assert grown("llamafast:request_generated_tokens_bucket", le="8") == 0
    assert grown("llamafast:request_generated_tokens_bucket", le="16") == 10
    steps = grown("llamacpp:n_decode_total")
    assert grown("llamafast:step_seconds_count") == grown("llamafast:step_rows_count") == steps
    assert grown("llamafast:step_rows_sum") == grown("llamafast:rows_total")
    assert grown("llamafast:step_seconds_sum") == pytest.approx(grown("batch_server:scheduler_step_seconds_total"))
    for alias, count in {"prompt_tokens_total": 80, "generation_tokens_total": 100}.items():
        assert grown(f"vllm:{alias}", model_name="tiny") == count
    assert grown("vllm:inter_token_latency_seconds_count", model_name="tiny") == 90
    assert grown("vllm:request_success_total", model_name="tiny", finished_reason="length") == 10


async def test_answers_that_end_without_a_token_of_their_own(server: Server) -> None:
    """A grammar that is complete, also at ``max_tokens``, and a prompt that is only scored."""
    before = await scrape(server.port)
    asked: list[tuple[dict[str, object], str]] = [
        ({"guided_choice": ["a", "b"], "max_tokens": 1}, "stop"),
        ({"guided_choice": ["a", "b"], "max_tokens": 9}, "stop"),
        ({"guided_choice": ["aqaq", "bqbq"], "max_tokens": 1}, "length"),
        ({"echo": True, "logprobs": 0, "max_tokens": 0}, "length"),
    ]
    for fields, finish in asked:
        body = json.dumps({"prompt": [40, 41], "temperature": 0, **fields}).encode()
        status, answer = await exchange(server.port, request_bytes("/v1/completions", body))
        assert (status, json.loads(answer)["choices"][0]["finish_reason"]) == (200, finish), fields
    after = await scrape(server.port)
    for name in ("end_to_end_seconds", "generation_seconds", "inference_seconds", "request_generated_tokens"):
        assert plain(after, f"llamafast:{name}_count") - plain(before, f"llamafast:{name}_count") == 4
    for reason in ("stop", "length"):
        finished = "llamafast:sequences_finished_total", frozenset({("reason", reason)})
        assert after[finished] - before[finished] == 2


async def test_gauges_return_to_zero_after_an_aborted_load(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    before = await scrape(server.port)
    await asyncio.gather(
        *(leave_early(server.port, json.dumps(body).encode(), after) for after in [0, 1, 300, 2000] * 10)
    )
    gauges = [
        "llamacpp:requests_processing", "llamacpp:requests_deferred", "batch_server:active_completions",
        "batch_server:claimed_sequences", "batch_server:radix_trie_tokens", "llamafast:kv_cells_used",
        "llamafast:kv_usage_ratio",
    ]  # fmt: skip
    samples = await scrape(server.port)
    async with asyncio.timeout(30):
        while any(plain(samples, gauge) for gauge in gauges):
            await asyncio.sleep(0.02)
            samples = await scrape(server.port)
    for alias in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert named(samples, f"vllm:{alias}", model_name="tiny") == 0
    cancelled = "llamafast:sequences_finished_total", frozenset({("reason", "cancelled")})
    assert samples[cancelled] - before[cancelled] >= 30


async def test_every_series_of_the_example_server_and_of_the_tables_is_there(server: Server) -> None:
    samples = await scrape(server.port)
    names = {name for name, _ in samples}
    assert names >= EXAMPLE_SERIES
    for series in (*ENGINE_SERIES, *DRAFT_SERIES, *ALIASES["vllm"]):
        assert (f"{series.name}_count" if series.kind == "histogram" else series.name) in names
    assert any(name == "llamafast:build_info" and dict(labels)["model"] == "tiny" for name, labels in samples)
    n_blocks = int(plain(samples, "llamafast:kv_cells")) // 16
    blocks = {"model_name": "tiny", "block_size": "16", "num_gpu_blocks": str(n_blocks)}
    assert named(samples, "vllm:cache_config_info", **blocks) == 1


async def test_a_scrape_does_not_wait_for_a_step(smollm2_server: Server) -> None:
    """A prompt of 2,000 tokens takes seconds, in steps of half a second each."""
    port = smollm2_server.port
    body = json.dumps({"prompt": [1000 + i for i in range(2000)], "max_tokens": 1, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes("/v1/completions", body))
    samples = await scrape(port)
    async with asyncio.timeout(30):
        while not plain(samples, "llamacpp:requests_processing"):
            samples = await scrape(port)
    steps = [plain(samples, "llamacpp:n_decode_total")]
    while len(steps) < 20 and plain(samples, "llamacpp:requests_processing"):
        samples = await scrape(port)
        steps.append(plain(samples, "llamacpp:n_decode_total"))
    # behind one that waited for a step there would be one more each time
    assert sum(later == before for before, later in itertools.pairwise(steps)) >= 2
    await abort(writer)
    await asyncio.wait_for(reader.read(), 30)


async def test_every_series_of_the_documents_exists(server: Server) -> None:
    names = {name for name, _ in await scrape(server.port)}
    page = (DOCS / "metrics.md").read_text()
    documented = set(re.findall(r"`((?:llamafast|llamacpp|batch_server|vllm):\w+)`", page))
    exposed = {re.sub("_(bucket|sum|count)$", "", name) for name in names} | names
    of_several_models = set(re.findall(r"^# TYPE (\S+)", merged({}, b"", ())[0].decode(), re.MULTILINE))
    assert len(of_several_models) == 6
    assert documented <= exposed | OF_SOME | of_several_models | {
        series.name for series in (*EMBEDDING_SERIES, *MEDIA_SERIES, *DISK_SERIES)
    }
    assert of_several_models <= documented
    assert {
        series.name
        for series in (
            *ENGINE_SERIES,
            *RAM_SEQUENCE_CACHE,
            *EMBEDDING_SERIES,
            *MEDIA_SERIES,
            *DISK_SERIES,
            *DRAFT_SERIES,
            *ALIASES["vllm"],
        )
    } <= documented


async def test_every_query_of_the_dashboard_finds_series(server: Server) -> None:
    names = {name for name, _ in await scrape(server.port)}
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 15
    for query in queries:
        asked = re.findall(r"\w+:\w+|process_\w+", query)
        assert asked, query
        assert set(asked) <= names | OF_SOME | {series.name for series in (*MEDIA_SERIES, *DISK_SERIES)}, query
