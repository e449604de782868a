"""What the server says of itself: models, health, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET, UnsetType, to_builtins
from msgspec.structs import astuple

from llamafast import __version__, metrics
from llamafast.api.adapters import invocation_text
from llamafast.api.http import Exchange
from llamafast.api.messages.errors import VERSION
from llamafast.api.messages.models import Served, model_page, model_told
from llamafast.api.native.endpoint import props
from llamafast.api.native.slots import slots
from llamafast.api.ollama import named_in, shown
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


async def reply_version(exchange: Exchange) -> None:
    await exchange.reply_json({"version": __version__})


async def reply_not_ready(exchange: Exchange, status: str, **more: float) -> None:
    await exchange.reply_json({"status": status, **more}, EngineUnavailable.status, _RETRY_AFTER)


class SystemEndpoints:
    """``draining``: whether new requests should go elsewhere. ``chats``: whether the model has a chat template."""

    def __init__(self, engine: EnginePort, config: Config, *, chats: bool) -> None:
        self._chats = chats and engine.info.generates
        self._engine = engine
        self._config = config
        self.draining = False

    @property
    def seconds_stalled(self) -> float:
        """How long the engine has stood still over work, where that is too long; else 0."""
        seconds = self._engine.stalled()
        return seconds if seconds > self._config.server.stall_seconds else 0.0

    async def models(self, exchange: Exchange) -> None:
        models = list(_models(self._engine, chats=self._chats))
        if VERSION in exchange.headers:
            await exchange.reply_json(model_page([_served(model) for model in models], exchange.query), headers=BY_API)
        else:
            await exchange.reply_json(ModelList(data=models), headers=BY_API)

    async def model(self, exchange: Exchange, model_id: str) -> None:
        model = self._model(model_id)
        told = model_told(_served(model)) if VERSION in exchange.headers else model
        await exchange.reply_json(told, headers=BY_API)

    async def show(self, exchange: Exchange, body: bytes) -> None:
        """Ollama's POST /api/show."""
        entry = to_builtins(self._model(await named_in(body, exchange)))
        await exchange.reply_json(shown(entry, self._engine.info.chat_template or ""))

    def entries(self) -> list[dict[str, Any]]:
        """Of /v1/models, as JSON has them."""
        entries: list[dict[str, Any]] = to_builtins(list(_models(self._engine, chats=self._chats)))
        return entries

    def _model(self, name: str) -> Model:
        """Raises ModelNotFound."""
        for model in _models(self._engine, chats=self._chats):
            if model.id == name or (model.aliases and answers_to(name, model.aliases)):
                return model
        raise ModelNotFound(f"the model {name[:128]!r} does not exist", param="model")

    async def props(self, exchange: Exchange) -> None:
        await exchange.reply_json(props(self._engine))

    async def slots(self, exchange: Exchange) -> None:
        """How busy the engine is. With ``?fail_on_no_slot`` 503 where nobody could begin at once."""
        told = slots(self._engine)
        if exchange.query.get("fail_on_no_slot") and all(slot.is_processing for slot in told):
            raise EngineUnavailable("no slot is idle")
        await exchange.reply_json(told)

    async def ready(self, exchange: Exchange) -> None:
        """200 while new requests are welcome."""
        if self.draining:
            await reply_not_ready(exchange, "draining")
        else:
            await self.health(exchange)

    async def health(self, exchange: Exchange) -> None:
        """200 while the engine steps or has nothing to do, 503 once it has stood still over work for too long."""
        if seconds := self.seconds_stalled:
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


def _models(engine: EnginePort, *, chats: bool) -> Iterator[Model]:
    """The model itself, then its adapters; ``chats``: it has a chat template."""
    info, weights = engine.info, engine.info.weights
    activated = {adapter.name: adapter for adapter in engine.adapters.listed() if adapter.invocation}
    parents: list[str | UnsetType | None] = [UNSET, *([info.id] * len(info.adapters))]
    for id, parent in zip((info.id, *info.adapters), parents, strict=True):
        adapter = None if parent is UNSET else activated.get(id)
        yield Model(
            id=id,
            parent=parent,
            alora_invocation_string=UNSET if adapter is None else invocation_text(adapter, engine.tokenizer),
            alora_invocation_tokens=UNSET if adapter is None else adapter.invocation,
            created=info.created,
            max_model_len=info.max_seq_len,
            aliases=list(info.aliases) if info.aliases and parent is UNSET else UNSET,
            context_length=info.max_seq_len,
            modalities=["text", *info.modalities],
            capabilities=list(_capabilities(info, chats=chats)),
            quantization=weights.quantisation or UNSET,
            arch=weights.architecture or UNSET,
            meta={
                "n_vocab": info.n_vocab,
                "n_ctx_train": info.n_ctx_train,
                "n_ctx": info.max_seq_len,
                "n_embd": weights.n_embd,
                "n_params": weights.n_params,
                "size": weights.n_bytes,
            },
        )


def _capabilities(info: ModelInfo, *, chats: bool) -> Iterator[str]:
    """What it can be asked for."""
    if info.generates:
        yield "completion"
    if chats:
        yield "tools"
    if info.fim.fills_in:
        yield "insert"
    if "image" in info.modalities:
        yield "vision"
    if "audio" in info.modalities:
        yield "audio"
    if info.embedding is not None:
        yield "rerank" if info.ranks else "embedding"
