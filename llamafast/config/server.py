"""The sections ``server`` and ``responses`` of cfg.json: where it listens, to whom, for how long, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from llamafast.config.fields import (
    Bytes,
    FilePath,
    Host,
    HttpUrl,
    Natural,
    Origin,
    Positive,
    PositiveBytes,
    Seconds,
    Section,
    Text,
)

# The environment's variable with a key: of servers one that opens them, of our clients the one they show.
KEY_VARIABLE = "LLAMAFAST_API_KEY"
# What becomes of fields of a request that nothing reads.
UnknownFields = Literal["ignore", "warn", "refuse"]


class KVEventsConfig(Section, frozen=True, kw_only=True):
    """Which blocks of prompts are here, told to routers as vLLM tells it, by its words. ``replay_endpoint``: where the
    last ``buffer_steps`` batches may be asked for again; null: nowhere."""

    endpoint: Text = "tcp://127.0.0.1:5557"
    replay_endpoint: Text | None = None
    topic: str = ""
    buffer_steps: Positive = 10_000


class RequestLogConfig(Section, frozen=True, kw_only=True):
    """A line per request. ``content``: with what it says and what it was answered, of each at most
    ``max_content_chars`` characters."""

    content: bool = False
    max_content_chars: Annotated[int, Meta(ge=1, le=2**24)] = 16384


class ServerConfig(Section, frozen=True, kw_only=True):
    """The HTTP side.

    ``uds``: a Unix socket in place of ``host`` and ``port``. ``ssl_certfile`` and ``ssl_keyfile``, PEM files, turn TLS
    on; ``ssl_cert_reqs`` is Python's ``ssl.VerifyMode``: whether clients may (1) or must (2) have a certificate that an
    authority in ``ssl_ca_certs`` has signed.

    ``max_queue``: requests that may wait. ``max_body_bytes`` null: ``Config.max_body_bytes`` says. ``stall_seconds``:
    /ready, /health and /healthz turn red when work waits and no step finished for that long. ``queue_seconds``: how
    long a request may wait before any of it begins, ``request_seconds``: how long it may take, waiting included; null:
    as long as it takes. ``drain_delay_seconds``: how long after SIGTERM, when /ready is red, new requests are still
    taken; ``drain_seconds``: how long running ones may take after that. ``request_log``: a line per request on stderr,
    without or with what it says, which, as all of the log, is text or, by ``log_format``, JSON. ``unknown_fields``:
    what becomes of fields of a request that nothing reads. ``metrics_aliases``: other servers whose metric names
    /metrics repeats. ``max_websockets`` are open at once, each for ``websocket_seconds`` at most, or for
    ``websocket_idle_seconds`` without a frame or an answer; 0 switches upgrades off.

    What clients may take: a connection ``header_seconds`` for its first request's head (over TCP) and
    ``keep_alive_seconds`` between requests, a body ``body_seconds`` for more of it, at 16 KiB a second on the whole, a
    reader ``send_seconds`` for the next piece of its answer. ``max_header_bytes`` bounds a request's head,
    ``max_concurrent_streams`` the requests at once on an HTTP/2 connection, and ``max_connections`` the connections
    that are accepted, where the limit of descriptors allows as many.

    ``api_key_file``: who may use the server (``llamafast.api.keys.Keys``). ``salt_by_key``: whether the prefix cache is
    kept apart by key. ``metrics_public``: whether /metrics needs no key. ``cors_origins``: whose web pages may use the
    server, ``*`` for all. ``page``: whether / has a page to chat with and to watch the engine on. ``allowed_hosts``:
    the names it answers to, a leading dot for all below one; null: those of this machine on loopback addresses, else
    any. ``lora_dir``: the folder that administrators may load adapters from.
    ``kv_events``: routers are told what is cached. ``otlp_endpoint``: the collector that gets a span of each request,
    over HTTP. ``ollama_discovery``: whether clients of Ollama find the models here.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    uds: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    ssl_keyfile_password: Text | None = None
    ssl_ca_certs: FilePath | None = None
    ssl_cert_reqs: Literal[0, 1, 2] = 0
    ssl_minimum_version: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.3"
    max_queue: Natural = 512
    max_body_bytes: PositiveBytes | None = None
    stall_seconds: Seconds = 60.0
    queue_seconds: Seconds | None = None
    request_seconds: Seconds | None = None
    drain_delay_seconds: Annotated[float, Meta(ge=0)] = 0.0
    drain_seconds: Annotated[float, Meta(ge=0)] = 20.0
    request_log: bool | RequestLogConfig = True
    log_format: Literal["text", "json"] = "text"
    unknown_fields: UnknownFields = "warn"
    metrics_aliases: tuple[Literal["vllm"], ...] = ()
    max_websockets: Natural = 1024
    websocket_seconds: Seconds = 3600.0
    websocket_idle_seconds: Seconds = 600.0
    header_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 75.0
    body_seconds: Seconds = 60.0
    send_seconds: Seconds = 60.0
    max_header_bytes: Annotated[int, Meta(ge=8192, le=2**31 - 1)] = 64 * 2**10  # the least that hyper takes
    max_concurrent_streams: Positive = 128
    max_connections: Positive = 16384
    api_key_file: FilePath | None = None
    salt_by_key: bool = True
    metrics_public: bool = False
    cors_origins: tuple[Origin, ...] = ()
    allowed_hosts: tuple[Host, ...] | None = None
    lora_dir: FilePath | None = None
    page: bool = True
    kv_events: KVEventsConfig | None = None
    otlp_endpoint: HttpUrl | None = None
    ollama_discovery: bool = False

    @property
    def content_chars(self) -> int:
        """Of what a request says, and of its answer, so much is in the log."""
        log = self.request_log
        return log.max_content_chars if isinstance(log, RequestLogConfig) and log.content else 0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.ssl_certfile is not None and self.ssl_keyfile is None:
            yield "ssl_certfile", "needs ssl_keyfile"
        if self.ssl_certfile is None:
            for key in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs", "ssl_cert_reqs"):
                if getattr(self, key):
                    yield key, "needs ssl_certfile"
            if self.ssl_minimum_version != "TLSv1.3":
                yield "ssl_minimum_version", "needs ssl_certfile"
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            yield "ssl_cert_reqs", "needs ssl_ca_certs"
        if self.ssl_ca_certs is not None and not self.ssl_cert_reqs:
            yield "ssl_ca_certs", "needs ssl_cert_reqs: 1 checks the certificates of clients that have one, 2 wants one"


class ResponsesConfig(Section, frozen=True, kw_only=True):
    """Responses that are kept to be continued or read again, in memory or in the SQLite file ``path``.

    ``max_count`` 0 keeps none.
    """

    max_count: Natural = 4096
    max_bytes: Bytes = 256 * 2**20
    max_age_seconds: Seconds = 86400.0
    path: FilePath | None = None
