"""What the server says of itself: models, health, metrics."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, UnsetType
from msgspec.structs import astuple

from llamafast import metrics
from llamafast.api.http import Exchange
from llamafast.api.messages.errors import VERSION
from llamafast.api.messages.models import Served, model_page, model_told
from llamafast.api.native.endpoint import props
from llamafast.api.schema.models import Model, ModelList
from llamafast.config import Config
from llamafast.config.names import answers_to
from llamafast.engine.types import EnginePort, ModelInfo
from llamafast.errors import EngineUnavailable, ModelNotFound

# Anthropic's clients get their own form of the models.
BY_API = ((b"vary", VERSION),)
# Of a probe that is red; whoever reads it asks again by its own clock.
_RETRY_AFTER = ((b"retry-after", b"%d" % EngineUnavailable.retry_after),)


async def reply_live(exchange: Exchange) -> None:
    """Whatever the engine does: whoever can read this has no reason to start the process again."""
    await exchange.reply_json({"status": "ok"})


async def reply_not_ready(exchange: Exchange, status: str, **more: float) -> None:
    await exchange.reply_json({"status": status, **more}, EngineUnavailable.status, _RETRY_AFTER)


class SystemEndpoints:
    """``draining``: whether new requests should go elsewhere."""

    def __init__(self, engine: EnginePort, config: Config) -> None:
        self._engine = engine
        self._config = config
        self.draining = False

    async def models(self, exchange: Exchange) -> None:
        models = list(_models(self._engine.info))
        if VERSION in exchange.headers:
            await exchange.reply_json(model_page([_served(model) for model in models], exchange.query), headers=BY_API)
        else:
            await exchange.reply_json(ModelList(data=models), headers=BY_API)

    async def model(self, exchange: Exchange, model_id: str) -> None:
        for model in _models(self._engine.info):
            if model.id == model_id or (model.aliases and answers_to(model_id, model.aliases)):
                told = model_told(_served(model)) if VERSION in exchange.headers else model
                return await exchange.reply_json(told, headers=BY_API)
        raise ModelNotFound(f"the model {model_id[:128]!r} does not exist", param="model")

    async def props(self, exchange: Exchange) -> None:
        await exchange.reply_json(props(self._engine))

    async def ready(self, exchange: Exchange) -> None:
        """200 while new requests are welcome."""
        if self.draining:
            await reply_not_ready(exchange, "draining")
        else:
            await self.health(exchange)

    async def health(self, exchange: Exchange) -> None:
        """200 while the engine steps or has nothing to do, 503 once it has stood still over work for too long."""
        seconds = self._engine.stalled()
        if seconds > self._config.server.stall_seconds:
            await reply_not_ready(exchange, "stalled", seconds=round(seconds, 3))
        else:
            await exchange.reply_json({"status": "ok"})

    async def metrics(self, exchange: Exchange) -> None:
        engine = self._engine
        body, content_type = metrics.render(
            engine.counters(),
            engine.histograms(),
            model=engine.info.id,
            aliases=self._config.server.metrics_aliases,
            adapters=[metrics.AdapterSeries(*astuple(use)) for use in engine.adapters.uses()],
            max_loras=self._config.model.max_loras,
        )
        await exchange.reply(200, body, content_type.encode())

    async def reset_prefix_cache(self, exchange: Exchange) -> None:
        """Forget what finished requests have left; the body is not read."""

        async def reset() -> None:
            await exchange.reply_json({"freed_bytes": await self._engine.reset_prefix_cache()})

        await exchange.until_disconnect(reset())


def _served(model: Model) -> Served:
    return Served(model.id, model.created, model.max_model_len)


def _models(info: ModelInfo) -> Iterator[Model]:
    """The model itself, then its adapters."""
    parents: list[str | UnsetType | None] = [UNSET, *([info.id] * len(info.adapters))]
    for id, parent in zip((info.id, *info.adapters), parents, strict=True):
        yield Model(
            id=id,
            parent=parent,
            created=info.created,
            max_model_len=info.max_seq_len,
            aliases=list(info.aliases) if info.aliases and parent is UNSET else UNSET,
            context_length=info.max_seq_len,
            modalities=["text", *info.modalities],
            meta={"n_ctx_train": info.n_ctx_train, "n_vocab": info.n_vocab},
        )
