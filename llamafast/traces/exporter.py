"""Spans on their way to a collector: OTLP over HTTP, by OpenTelemetry's own SDK, in a thread of its own.

What waits is bounded. Where the collector is away or slow, further spans are dropped and counted; nobody waits for it
but the end of the process, for a moment. The SDK reads what its environment variables say of headers, certificates,
compression, time limits, sampling and the resource.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from llamafast import __version__, metrics
from llamafast.api.spans import Span
from llamafast.errors import ConfigError

log = logging.getLogger(__name__)

# What the end of the process waits for spans that are still here.
FLUSH_SECONDS = 2.0
# Spans that wait, where the environment's variable does not say.
MAX_WAITING = 2048
QUEUE_VARIABLE = "OTEL_BSP_MAX_QUEUE_SIZE"
_MAX_REASON_CHARS = 256


class Exporter:
    """Takes spans on the event loop. Raises ConfigError where the SDK's environment variables make no sense."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._max_waiting = _max_waiting()
        try:
            self._counted = _Counted(OTLPSpanExporter(endpoint=url), url)
        except Exception as error:  # by a variable: a certificate that cannot be read, another SDK's plug-in
            raise ConfigError(f"server.otlp_endpoint: {error}") from error
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._n_added = 0
        self._warned = False

    @property
    def n_waiting(self) -> int:
        """Spans that nobody has begun to send."""
        return self._n_added - self._counted.n_taken

    def start(self) -> None:
        """Begin to send. The thread runs on the CPUs of whoever calls this. Raises ConfigError."""
        try:
            processor = BatchSpanProcessor(self._counted, max_queue_size=self._max_waiting)
            provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        except ValueError as error:
            raise ConfigError(f"server.otlp_endpoint: the environment's OTEL_ variables: {error}") from error
        provider.add_span_processor(processor)
        self._provider = provider
        self._tracer = provider.get_tracer("llamafast", __version__)

    def add(self, span: Span) -> None:
        """Send it, where the client's span, or the SDK's sampler, says that it is to be kept."""
        if self._tracer is None:  # it has been closed
            metrics.observe_spans("dropped", 1)
            return
        parent = set_span_in_context(NonRecordingSpan(_parent(span)))
        made = self._tracer.start_span(
            span.name, parent, SpanKind.SERVER, attributes=span.attributes, start_time=span.start
        )
        if not made.is_recording():
            return
        if self.n_waiting >= self._max_waiting:
            metrics.observe_spans("dropped", 1)
            if not self._warned:
                self._warned = True
                log.warning("traces   %d spans wait for %s: further ones are dropped", self.n_waiting, self.url)
            return
        self._warned = False
        for name, moment in span.events:
            made.add_event(name, timestamp=moment)
        if span.fault is not None:
            made.set_status(Status(StatusCode.ERROR, span.fault))
        self._n_added += 1
        made.end(span.end)

    def close(self) -> None:
        """Send what is still here, but for no longer than FLUSH_SECONDS; nothing more is taken. Any thread."""
        provider, self._provider, self._tracer = self._provider, None, None
        if provider is None:
            return
        flushing = threading.Thread(target=provider.shutdown, name="llamafast-traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if lost := self._n_added - self._counted.n_done:
            metrics.observe_spans("dropped", lost)
            log.warning("traces   %d spans did not reach %s in time", lost, self.url)


class _Counted(SpanExporter):
    """``exporter``, which has begun to send ``n_taken`` spans and is through with ``n_done`` of them. The log has the
    first failure of several in a row, in the SDK's own words."""

    def __init__(self, exporter: OTLPSpanExporter, url: str) -> None:
        self.n_taken = self.n_done = 0
        self._exporter = exporter
        self._url = url
        self._failing = False
        self._reasons = _Reasons()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.n_taken += len(spans)
        self._reasons.first = ""
        result = self._exporter.export(spans)
        done = result is SpanExportResult.SUCCESS
        metrics.observe_spans("exported" if done else "failed", len(spans))
        self.n_done += len(spans)
        if done and self._failing:
            log.info("traces   %s takes spans again", self._url)
        elif not done and not self._failing:
            log.warning("traces   %s takes no spans, and they are dropped: %s", self._url, self._reasons.first)
        self._failing = not done
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Reasons(logging.Handler):
    """Hears why an export fails, which the SDK only logs: line after line for as long as a collector is away. These are
    no lines of our log; ``first`` is the first one of an export."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""
        # of the transport too, whatever it is called in this version
        for logger in (
            logging.getLogger("opentelemetry.exporter"),
            logging.getLogger("opentelemetry.sdk.trace.export"),
        ):
            logger.propagate = False
            logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()[:_MAX_REASON_CHARS]


def _resource() -> Resource:
    """What runs here; the environment's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say more, or something else."""
    ours = Resource({"service.name": "llamafast", "service.version": __version__, "service.instance.id": str(uuid4())})
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def _parent(span: Span) -> SpanContext:
    """An invalid one, of which nobody is a child, where there is none."""
    if not span.traceparent:
        return SpanContext(0, 0, is_remote=False)
    _, trace, parent, flags = span.traceparent.decode().split("-")
    state = TraceState.from_header([span.tracestate.decode()])
    return SpanContext(int(trace, 16), int(parent, 16), True, TraceFlags(int(flags, 16)), state)


def _max_waiting() -> int:
    """Raises ConfigError."""
    told = os.environ.get(QUEUE_VARIABLE, "").strip()
    if told and not (told.isascii() and told.isdecimal() and 0 < int(told) <= 10**6):
        raise ConfigError(
            f"server.otlp_endpoint: {QUEUE_VARIABLE} is a number of spans from 1 to 1000000, not {told!r}"
        )
    return int(told) if told else MAX_WAITING
