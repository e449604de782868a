"""Whether requests are traced, and what that needs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llamafast.config import ServerConfig
from llamafast.errors import ConfigError

if TYPE_CHECKING:
    from llamafast.traces.exporter import Exporter

logger = logging.getLogger(__name__)

# Where collectors take spans over HTTP, and the port on which they speak gRPC.
PATH = "/v1/traces"
GRPC_PORT = 4317


def open_traces(config: ServerConfig) -> Exporter | None:
    """Where spans go, if the config says so; it sends nothing before ``start``. Raises ConfigError."""
    if config.otlp_endpoint is None:
        return None
    url = url_of(config.otlp_endpoint)
    try:
        from llamafast.traces.exporter import Exporter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"server.otlp_endpoint needs the package {error.name}: pip install 'llamafast[otel]'"
        ) from error
    exporter = Exporter(url)
    logger.info("traces   %s", url)
    if urlsplit(url).port == GRPC_PORT:
        logger.warning("traces   %d is where collectors speak gRPC; over HTTP, as here, it is mostly 4318", GRPC_PORT)
    return exporter


def url_of(endpoint: str) -> str:
    """The whole URL: one without a path is a collector's, which has a path of its own for spans. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"server.otlp_endpoint: {error}") from error
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + PATH
