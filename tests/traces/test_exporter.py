"""Spans by OpenTelemetry's own SDK to a real collector, and to one that is away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.collector import collector, values

from llamafast import __version__, metrics
from llamafast.api.spans import Span
from llamafast.config import ServerConfig
from llamafast.errors import ConfigError
from llamafast.traces import exporter
from llamafast.traces.exporter import Exporter
from llamafast.traces.opened import open_traces, url_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPAN = Span(
    "chat tiny",
    1_700_000_000_000_000_001,
    1_700_000_001_000_000_000,
    {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7, "gen_ai.response.finish_reasons": ["stop"]},
    (("admitted", 1_700_000_000_500_000_000),),
    None,
    f"00-{TRACE}-{PARENT}-01".encode(),
    b"rojo=00f067aa0ba902b7, congo=t61rcWkgMzE",
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(exporter, "FLUSH_SECONDS", 60.0)


def counted() -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render_process().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "llamafast:spans_total"]
    return {sample.labels["result"]: sample.value for sample in samples}


def since(before: dict[str, float]) -> dict[str, float]:
    return {name: n - before.get(name, 0) for name, n in counted().items() if n != before.get(name, 0)}


def opened(endpoint: str) -> Exporter:
    traces = open_traces(ServerConfig(otlp_endpoint=endpoint))
    assert traces is not None
    traces.start()
    return traces


def test_a_span_as_the_collector_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
    before = counted()
    with collector() as there:
        traces = opened(there.endpoint)
        traces.add(SPAN)
        (span,) = there.until(1)
        traces.add(SPAN._replace(fault="it broke", traceparent=b"", tracestate=b""))
        traces.close()
        _, root = there.until(2)
        assert set(there.paths) == {"/v1/traces"}
        assert there.headers[0]["authorization"] == "Bearer x"
        assert there.headers[0]["content-type"] == "application/x-protobuf"
        resource = there.resources[0]
    assert (span.name, span.kind) == ("chat tiny", 2)  # SPAN_KIND_SERVER
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (SPAN.start, SPAN.end)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert values(span.attributes) == SPAN.attributes
    assert [(event.name, event.time_unix_nano) for event in span.events] == list(SPAN.events)
    assert (span.status.code, span.status.message) == (0, "")
    assert (root.status.code, root.status.message) == (2, "it broke")
    assert span.trace_state == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert (root.parent_span_id, root.trace_state) == (b"", "")
    assert root.trace_id.hex() != TRACE
    assert (resource["service.name"], resource["service.version"]) == ("llamafast", __version__)
    assert resource["telemetry.sdk.language"] == "python"
    assert since(before) == {"exported": 2}


def test_whether_a_trace_is_kept_its_beginning_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the SDK's sampler, where it begins here."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with collector() as there:
        traces = opened(there.endpoint)
        for name, traceparent in (
            ("not kept", f"00-{TRACE}-{PARENT}-00"), ("kept", f"00-{TRACE}-{PARENT}-01"), ("begins here", ""),
            ("nobody's", f"00-{'0' * 32}-{PARENT}-01"),
        ):  # fmt: skip
            traces.add(SPAN._replace(name=name, traceparent=traceparent.encode()))
        traces.close()
        assert [span.name for span in there.spans] == ["kept"]


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-eu")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.version=9")
    with collector() as there:
        traces = opened(f"{there.endpoint}/elsewhere/traces")
        traces.add(SPAN)
        traces.close()
        (resource,) = there.resources
        assert there.paths == ["/elsewhere/traces"]
    assert resource["service.name"] == "chat-eu"
    assert (resource["deployment.environment.name"], resource["service.version"]) == ("prod", "9")


def test_what_does_not_fit_the_queue_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    before = counted()
    with collector() as there:
        there.hold.clear()
        traces = opened(there.endpoint)
        traces.add(SPAN)
        there.until_asked(1)  # it is on its way
        for _ in range(25):
            traces.add(SPAN)
        assert traces.n_waiting == 10
        assert since(before) == {"dropped": 15}
        assert [line for line in caplog.messages if "further ones are dropped" in line] == [
            f"traces   10 spans wait for {there.endpoint}/v1/traces: further ones are dropped"
        ]
        there.hold.set()
        there.until(11)
        traces.close()
    assert since(before) == {"dropped": 15, "exported": 11}


def test_a_collector_that_refuses_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = counted()
    with collector() as there:
        there.status = 404
        traces = opened(there.endpoint)
        for n in range(1, 4):
            traces.add(SPAN)
            there.until_asked(n)
        there.status = 200
        while since(before).get("failed", 0) < 3:
            time.sleep(0.001)
        traces.add(SPAN)
        there.until(1)
        traces.close()
    lines = [line for line in caplog.messages if "spans" in line]
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"traces   {there.endpoint}/v1/traces takes no spans, and they are dropped: ")
    assert "404" in lines[0]
    assert lines[1] == f"traces   {there.endpoint}/v1/traces takes spans again"
    assert since(before) == {"failed": 3, "exported": 1}


def test_the_end_waits_for_no_collector_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporter, "FLUSH_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    before = counted()
    with collector() as there:
        there.hold.clear()
        traces = opened(there.endpoint)
        for _ in range(3):
            traces.add(SPAN)
        began = time.monotonic()
        traces.close()
        traces.close()
        assert time.monotonic() - began < 20
        traces.add(SPAN)
        # what it has left behind is over before the collector is
        there.hold.set()
        (flushing,) = (thread for thread in threading.enumerate() if thread.name == "llamafast-traces")
        flushing.join(60)
        assert not flushing.is_alive()
    assert since(before)["dropped"] == 4
    assert "traces   3 spans did not reach" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_where_spans_go(endpoint: str, url: str) -> None:
    assert url_of(endpoint) == url


def test_what_cannot_be_is_told_at_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert open_traces(ServerConfig()) is None
    with pytest.raises(ConfigError, match=r"server\.otlp_endpoint: Port out of range"):
        open_traces(ServerConfig(otlp_endpoint="http://a:99999"))
    assert open_traces(ServerConfig(otlp_endpoint="http://a:4317")) is not None
    assert "4317 is where collectors speak gRPC" in caplog.text
    for told in ("many", "0", "-1"):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", told)
        with pytest.raises(ConfigError, match=r"OTEL_BSP_MAX_QUEUE_SIZE is a number of spans from 1 to 1000000, not"):
            open_traces(ServerConfig(otlp_endpoint="http://a:4318"))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
    traces = open_traces(ServerConfig(otlp_endpoint="http://a:4318"))
    assert traces is not None
    with pytest.raises(ConfigError, match="OTEL_ variables: max_export_batch_size"):
        traces.start()


def test_what_is_not_installed_is_told() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from llamafast.config import ServerConfig; from llamafast.traces.opened import open_traces\n"
        "open_traces(ServerConfig()); open_traces(ServerConfig(otlp_endpoint='http://a'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    *_, told = run.stderr.splitlines()
    assert "server.otlp_endpoint needs the package opentelemetry" in told
    assert told.endswith(": pip install 'llamafast[otel]'")
