"""A collector of OpenTelemetry on loopback: takes OTLP over HTTP and decodes it, as protobuf's own classes have it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


class Collector:
    """``status`` is what it answers who asks from now on, ``paths`` and ``headers`` are of each request that it was
    sent; ``hold`` lets it answer nothing until that is set."""

    def __init__(self) -> None:
        self.status = 200
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()
        self._taken: list[ExportTraceServiceRequest] = []
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self._news:
            status = self.status
            self.paths.append(request.path)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self._news.notify_all()
        self.hold.wait(30)
        with self._news:
            if status == 200:
                self._taken.append(ExportTraceServiceRequest.FromString(body))
            self._news.notify_all()
        request.send_response(status)
        request.send_header("content-length", "0")
        request.end_headers()

    @property
    def spans(self) -> list[Any]:
        return [
            span for one in self._taken for resource in one.resource_spans for scope in resource.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [values(resource.resource.attributes) for one in self._taken for resource in one.resource_spans]

    def until_asked(self, n: int) -> None:
        """Wait for so many requests."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.paths) >= n, 30)

    def until(self, n: int) -> list[Any]:
        """Wait for so many spans."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.spans) >= n, 30), len(self.spans)
        return self.spans


@contextmanager
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.hold.set()
        made._server.shutdown()
        thread.join()
        made._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: _plain(one.value) for one in attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    return getattr(value, kind)
