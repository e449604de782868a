"""An App over any engine, configured by the keys that a test is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafast.api.app import App
from llamafast.api.client_wait import ClientWaits
from llamafast.api.keys import Keys
from llamafast.api.origins import Origins
from llamafast.api.spans import SpanSink
from llamafast.api.sse import PING_SECONDS
from llamafast.config import Config, ModelConfig, ResponsesConfig, ServerConfig
from llamafast.engine.media import MediaLoader
from llamafast.engine.types import EnginePort


def make_app(
    engine: EnginePort,
    *,
    keys: Keys | None = None,
    origins: Origins | None = None,
    waits: ClientWaits | None = None,
    ping_seconds: float = PING_SECONDS,
    model: Mapping[str, Any] | None = None,
    responses: ResponsesConfig | None = None,
    media: MediaLoader | None = None,
    spans: SpanSink | None = None,
    **server: Any,
) -> App:
    """Other keywords are keys of the config's section ``server``, those in ``model`` of that one. Without ``keys``
    nobody needs one, without ``origins`` the server answers to any name."""
    config = Config(
        model=ModelConfig(path="model.gguf", **(model or {})),
        server=ServerConfig(**server),
        responses=responses or ResponsesConfig(),
    )
    return App(
        engine,
        config,
        keys=keys or Keys(),
        origins=origins or Origins(config.server, None),
        waits=waits or ClientWaits(config.server),
        ping_seconds=ping_seconds,
        media=media,
        spans=spans,
    )
