"""What a config means for a model as llama_context_params: of the context that generates, and of that which embeds."""

from __future__ import annotations

from typing import Any

from llamafast._core.model import Model
from llamafast.config import ModelConfig
from llamafast.engine.drafting import draft_params
from llamafast.engine.placement import placement_of
from llamafast.engine.pooling import embedding_params, embeds, made_to_embed
from llamafast.errors import ConfigError

# Sequence ids by kind of memory, where the config leaves it open. Ids of a unified cache cost nothing; a recurrent
# state is allocated for each id; a partitioned context is divided among them.
N_SEQ_MAX_UNIFIED, N_SEQ_MAX_RECURRENT, N_SEQ_MAX_PARTITIONED = 64, 8, 1


def context_params(config: ModelConfig, model: Model) -> dict[str, Any]:
    """The llama_context_params this config means for this model; None leaves llama.h's default."""
    n_ctx = config.n_ctx or model.n_ctx_train
    n_batch = min(n_ctx, config.n_batch or 2048)
    placement = placement_of(config)
    return {
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": min(n_batch, config.n_ubatch or 512),
        "n_seq_max": config.n_seq_max or min(n_batch, max(1, n_ctx - 1), _n_seq_max(config, model)),
        "n_threads": placement.threads,
        "n_threads_batch": placement.threads_batch,
        "choose_threads": placement.choose_threads,
        "flash_attn_type": None if config.flash_attn is None else int(config.flash_attn),
        **config.llama_context_params,
    }


def with_room_for(widest_span: int, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` of a context that computes so many rows at one go: llama.cpp would abort for less. Raises
    ConfigError."""
    if widest_span > params["n_ctx"]:
        raise ConfigError(
            f"model.n_ctx: a picture may have {widest_span} rows, more than the context's {params['n_ctx']}"
        )
    return params | {name: max(params[name], widest_span) for name in ("n_batch", "n_ubatch")}


def all_params(config: ModelConfig, model: Model, widest_span: int = 0) -> list[dict[str, Any]]:
    """Those of every context that is made, as far as the GGUF's head tells. Raises ConfigError."""
    params = with_room_for(widest_span, context_params(config, model))
    wanted = embeds(config, model)
    if model.has_encoder or (wanted and made_to_embed(config, model)):
        return [embedding_params(config, model, params, beside=False)]
    both = [params | draft_params(config, model)]
    return [*both, embedding_params(config, model, params, beside=True)] if wanted else both


def _n_seq_max(config: ModelConfig, model: Model) -> int:
    if model.is_recurrent or model.is_hybrid:
        return N_SEQ_MAX_RECURRENT
    return N_SEQ_MAX_UNIFIED if config.kv_unified else N_SEQ_MAX_PARTITIONED
