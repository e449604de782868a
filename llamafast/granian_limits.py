"""What Granian bounds: heads, streams of HTTP/2 and connections."""

from __future__ import annotations

import logging
import math
import resource
import threading
from contextlib import suppress
from typing import Any

from granian.http import HTTP1Settings, HTTP2Settings

from llamafast.config import ServerConfig

logger = logging.getLogger(__name__)

BACKLOG = 2048
# Descriptors that are not connections: the model, the database, pipes, processes that try grammars.
RESERVED_DESCRIPTORS = 96
MACOS_DESCRIPTORS = 10240  # its OPEN_MAX, whatever it calls unlimited


def limits(server: ServerConfig, n_descriptors: int = 1) -> dict[str, Any]:
    """Granian's options, where each connection takes so many descriptors. Raises the process's limit of these, where
    that may be."""
    wanted = server.max_connections
    there = raise_descriptor_limit(n_descriptors * wanted + RESERVED_DESCRIPTORS)
    n_connections = min(wanted, max(1, (there - RESERVED_DESCRIPTORS) // n_descriptors))
    if n_connections < wanted:
        logger.warning("serving  up to %d connections: the limit of descriptors allows no more", n_connections)
    return {
        "backlog": BACKLOG,
        "backpressure": n_connections,
        "http1_settings": http1_settings(server),
        "http2_settings": http2_settings(server),
    }


def http1_settings(server: ServerConfig) -> HTTP1Settings:
    """hyper times a head and the silence before it as one; the App's own watch tells a first head from a next one."""
    seconds = min(max(server.header_seconds, server.keep_alive_seconds), threading.TIMEOUT_MAX)
    return HTTP1Settings(header_read_timeout=math.ceil(1000 * seconds), max_buffer_size=server.max_header_bytes)


def http2_settings(server: ServerConfig) -> HTTP2Settings:
    return HTTP2Settings(max_concurrent_streams=server.max_concurrent_streams, max_headers_size=server.max_header_bytes)


def raise_descriptor_limit(wanted: int) -> int:
    """As many descriptors as the system lets this process have, ``wanted`` where it has no limit; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    for limit in (wanted, MACOS_DESCRIPTORS):
        if limit > soft:
            with suppress(ValueError, OSError):  # the kernel's own limit is lower
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return limit
    return soft
