"""How much memory a model and its contexts will take, and how long a context fits: found out before any is taken.

llama.cpp lays out a model without weights (``no_alloc``) as it would the real one, and tells the sizes.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from llamafast._core.context import Context
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast.config import ModelConfig, cache_type_name
from llamafast.engine.allocated import ContextBytes, allocated, in_words
from llamafast.engine.drafting import draft_model_params
from llamafast.engine.memory import available_bytes, swap_bytes
from llamafast.engine.model_params import drafting_params, model_params
from llamafast.engine.need import memory_need, moved_here, share_here
from llamafast.engine.params import all_params
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError, ModelLoadError

logger = logging.getLogger(__name__)

# Tokens: contexts that are chosen here are multiples of it, and are never shorter than the least.
GRAIN, LEAST = 256, 512
# Of what is available, the part that a context may be chosen for: the rest is for whatever else happens.
SHARE = 0.9
# What takes so little of it by the look of its head needs no trial.
PLAINLY = 0.4
# Tokens: no longer context is laid out, as its cells are kept account of even so.
FARTHEST = 2**20
LOAD_MODE_NONE = 0

# what llama.cpp says of types of the cache that a model cannot have
_WRONG_BLOCKS = re.compile(
    r"(?P<kind>[KV]) cache type (?P<type>\S+) with block size (?P<block>\d+) does not divide "
    r"n_embd_head_.=(?P<head>\d+)"
)
_ONE_TYPE = "does not support different K"


class Room(NamedTuple):
    """Bytes that are free: ``here`` for CPUs, and on all other devices together, None where these do not tell."""

    here: int
    elsewhere: int | None = None


class Laid(NamedTuple):
    """What a model with these contexts takes: ``weights`` as they are in the files, and ``share_here`` is the part of
    weights and caches that CPUs have by their layers; ``moved_here`` are bytes of weights that they have beyond it, or
    that they lack, as overrides say so. ``drafts`` is the context of a draft model."""

    weights: int
    contexts: list[ContextBytes]
    beside: int
    share_here: float
    moved_here: int = 0
    drafts: ContextBytes = ContextBytes(0, 0, {})

    @property
    def here(self) -> int:
        """Bytes for CPUs."""
        by_layers = round((self.weights + self._caches) * self.share_here)
        return by_layers + self.moved_here + self._compute(here=True) + self.beside

    @property
    def elsewhere(self) -> int:
        by_layers = round((self.weights + self._caches) * (1 - self.share_here))
        return by_layers - self.moved_here + self._compute(here=False)

    def fits(self, room: Room, share: float = 1.0) -> bool:
        elsewhere = room.elsewhere is None or self.elsewhere <= share * room.elsewhere
        return self.here <= share * room.here and elsewhere

    @property
    def _caches(self) -> int:
        return sum(one.kv + one.state for one in (*self.contexts, self.drafts))

    def _compute(self, *, here: bool) -> int:
        every = (*self.contexts, self.drafts)
        return sum(size for one in every for where, size in one.compute.items() if _is_here(where) == here)


class Trial:
    """A model without its weights. ``beside`` are bytes of what comes with it (adapters, a projector, the file of
    ``draft``, a small model that drafts). Raises ModelLoadError or ConfigError."""

    def __init__(
        self, config: ModelConfig, path: Path, beside: int = 0, widest_span: int = 0, draft: Path | None = None
    ) -> None:
        self.config = config
        self._beside = beside
        self._widest_span = widest_span
        self.params = model_params(config, path)
        allocated()
        self.model = _laid_out(path, self.params.params)
        self.free = sum(allocated().free.values()) or None
        self._share_here = share_here(config, Gguf(str(path)))
        self._moved_here = moved_here(self.params.moved, self._share_here)
        self._draft = None
        if draft is not None:
            self._draft = _laid_out(draft, drafting_params(config))
            self._moved_here -= round(self._draft.size * (1 - share_here(config, Gguf(str(draft)))))

    @property
    def room(self) -> Room:
        """What is free now."""
        return Room(available_bytes(), self.free)

    def laid(self, n_ctx: int | None = None) -> Laid:
        """With a context of ``n_ctx`` tokens, or that of the config. Raises ModelLoadError or ConfigError."""
        trained = self.model.n_ctx_train
        n_ctx = n_ctx or self.config.n_ctx or trained
        measured = min(trained, FARTHEST)
        if n_ctx <= measured:
            contexts = self._contexts(n_ctx)
        else:
            # somebody may ask for billions, and a file may say them: from some length on all is linear
            half = measured // 2
            share = (n_ctx - measured) / (measured - half)
            pairs = zip(self._contexts(half), self._contexts(measured), strict=True)
            contexts = [_beyond(shorter, longer, share) for shorter, longer in pairs]
        laid = Laid(self.model.size, contexts, self._beside, self._share_here, self._moved_here)
        return laid if self._draft is None else laid._replace(contexts=contexts[:-1], drafts=contexts[-1])

    def longest(self, room: Room, share: float = SHARE) -> int | None:
        """The longest context that fits, up to what the model was trained for; None: not even LEAST tokens."""
        trained = self.model.n_ctx_train
        if self.laid(trained).fits(room, share):
            return trained
        low, high = 0, trained // GRAIN
        while high - low > 1:
            middle = (low + high) // 2
            if self.laid(middle * GRAIN).fits(room, share):
                low = middle
            else:
                high = middle
        return low * GRAIN if low * GRAIN >= LEAST else None

    def _contexts(self, n_ctx: int) -> list[ContextBytes]:
        """The draft model's comes last."""
        allocated()
        config = replace(self.config, n_ctx=n_ctx)
        try:
            every = all_params(config, self.model, self._widest_span)
            for params in every:
                Context(self.model, bare=True, **params)
            if self._draft is not None:
                own = draft_model_params(config, self._draft, every[0]["n_ctx"], every[0]["n_seq_max"])
                Context(self._draft, bare=True, **own)
            return allocated().contexts
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"model: {error}") from error
        except ModelLoadError as error:
            if (fault := _cache_fault(self.config, str(error))) is None:
                raise
            raise ConfigError(fault) from error


def with_context(
    config: ModelConfig,
    path: Path,
    beside: int = 0,
    widest_span: int = 0,
    here: int | None = None,
    draft: Path | None = None,
) -> ModelConfig:
    """``config`` with the length of its context: where it says none, what the model was trained for or what fits, if
    that is less, which is told. ``beside`` are bytes of what comes with it, ``here`` those for CPUs, where these are
    not what is available now; ``draft`` is a small model that drafts. Raises ModelLoadError where a context that is
    asked for takes more than there is."""
    n_here = available_bytes() if here is None else here
    if _plainly_fits(config, path, beside, n_here, draft):
        return config
    trial = Trial(config, path, beside, widest_span, draft)
    room = Room(n_here, trial.free)
    if config.n_ctx:
        _check(trial, room)
        return config
    trained = trial.model.n_ctx_train
    n_ctx = trial.longest(room)
    if n_ctx == trained or (n_ctx is None and trained <= LEAST):
        return config
    logger.warning(
        "context  of %d tokens, and not the %d that the model was trained for: %s; model.n_ctx says otherwise",
        n_ctx or LEAST,
        trained,
        f"more does not fit into {_room_in_words(room)}",
    )
    return replace(config, n_ctx=n_ctx or LEAST)


def cells_in_words(n_ctx: int, trained: int, asked: int | None) -> str:
    """How long a context is and, where the config has not ``asked`` for so much, why."""
    if asked:
        return f"{n_ctx} cells"
    return f"{n_ctx} cells ({'what fits' if n_ctx < trained else 'what the model was trained for'})"


def advice(config: ModelConfig, path: Path) -> str:
    """What to lower after a context was refused, and to what."""
    try:
        trial = Trial(config, path)
        longest = trial.longest(trial.room)
    except (ConfigError, ModelLoadError):
        longest = None
    lower = "model.n_ctx" if longest is None else f"model.n_ctx to {longest}"
    params = f"model.n_batch ({config.n_batch or 2048}) and model.n_seq_max"
    return f'Lower {lower}, or {params}; model.type_k and model.type_v "q8_0" halve the KV cache.'


def _check(trial: Trial, room: Room) -> None:
    """Weights are files that are mapped, and may be read again and again: the rest has to be there."""
    laid = trial.laid()._replace(weights=0, moved_here=0)
    room = room._replace(here=room.here + swap_bytes())
    if laid.fits(room):
        return
    longest = trial.longest(room)
    n_bytes = sum(one.total for one in (*laid.contexts, laid.drafts))
    lower = "model.n_ctx" if longest is None else f"model.n_ctx to {longest}"
    raise ModelLoadError(
        f"a context of {trial.config.n_ctx} tokens does not fit into memory: it takes {in_words(n_bytes)}, and "
        f"{_room_in_words(room)} are free. Lower {lower}, or model.n_batch and model.n_seq_max; "
        'model.type_k and model.type_v "q8_0" halve the KV cache.'
    )


def _cache_fault(config: ModelConfig, log: str) -> str | None:
    """What llama.cpp has against the types of the cache, as a fault of the config."""
    if (found := _WRONG_BLOCKS.search(log)) is not None:
        key = f"model.type_{found['kind'].lower()}"
        return (
            f"{key}: {found['type']} is written in blocks of {found['block']}, of which the model's heads of "
            f"{found['head']} values are no multiple; f32, f16 and bf16 fit any"
        )
    if _ONE_TYPE in log:
        types = f"{cache_type_name(config.type_k)} and {cache_type_name(config.type_v)}"
        return f"model.type_v: this model has one cache for both, of one type, and not {types}"
    return None


def _plainly_fits(config: ModelConfig, path: Path, beside: int, here: int, draft: Path | None) -> bool:
    # whether a type of the cache suits the model only a trial tells
    if not placement_of(config).on_cpu or config.quantises_cache or config.type_k != config.type_v:
        return False
    try:
        return memory_need(config, path, draft=draft) + beside <= PLAINLY * here
    except ModelLoadError:
        return True  # whoever loads it will tell


def _room_in_words(room: Room) -> str:
    here = in_words(room.here)
    return here if room.elsewhere is None else f"{here} of the machine's and {in_words(room.elsewhere)} of the GPUs'"


def _laid_out(path: Path, params: dict[str, Any]) -> Model:
    try:
        return Model(str(path), load_mode=LOAD_MODE_NONE, no_alloc=True, **params)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model: {error}") from error


def _beyond(shorter: ContextBytes, longer: ContextBytes, share: float) -> ContextBytes:
    """What is as much longer than the ``longer`` one as this is than the ``shorter``, times ``share``."""

    def further(first: int, second: int) -> int:
        return round(second + share * (second - first))

    compute = {where: further(shorter.compute.get(where, size), size) for where, size in longer.compute.items()}
    return ContextBytes(further(shorter.kv, longer.kv), further(shorter.state, longer.state), compute)


def _is_here(where: str) -> bool:
    return where.startswith("CPU") or where.endswith("_Host")
