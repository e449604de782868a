"""Whether a model embeds, how its vectors are pooled, and the context that takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from llamafast._core.context import Context
from llamafast._core.embedder import Embedder
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast.config import ModelConfig
from llamafast.engine.embedding_info import EmbeddingInfo, Pooling
from llamafast.engine.pace import Pace
from llamafast.errors import ConfigError, ModelLoadError

# enum llama_pooling_type of llama.h
POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")
NONE, MEAN, CLS, LAST, RANK = range(5)
NON_CAUSAL = 1  # enum llama_attention_type

# Rows of a batch: what must be computed whole has to fit, the rest runs as fast in smaller batches.
BATCH_WHOLE, BATCH_IN_PIECES = 2048, 512
# The memory of embeddings beside generation, in tokens; it also bounds one input.
CELLS_BESIDE = 2048
# These architectures end a ranking with a softmax over (yes, no).
SOFTMAX_RANK = ("qwen3", "qwen3vl")


def embeds(config: ModelConfig, model: Model) -> bool:
    """Whether this model is to serve embeddings: the config's word, else the GGUF's."""
    if config.embedding is not None:
        return config.embedding
    return made_to_embed(config, model) or (config.pooling_type or NONE) > NONE


def made_to_embed(config: ModelConfig, model: Model) -> bool:
    """Whether the GGUF is an embedding or ranking model, or an encoder: nothing that generates."""
    return model.has_encoder or (_key(config, model, "pooling_type") or NONE) > NONE


def looks_both_ways(config: ModelConfig, model: Model) -> bool:
    """Whether attention is not causal, so that an input must be computed whole."""
    if config.attention_type is not None and config.attention_type >= 0:
        return config.attention_type == NON_CAUSAL
    return model.has_encoder or _key(config, model, "attention.causal") == 0


def embedding_params(config: ModelConfig, model: Model, params: dict[str, Any], *, beside: bool) -> dict[str, Any]:
    """``params`` for a context that embeds, ``beside`` one that generates.

    Micro-batch and batch are one, and the memory is always unified: llama.cpp pools each micro-batch for itself, so no
    input may be spread over two without our knowing.
    """
    n_ctx = min(params["n_ctx"], CELLS_BESIDE) if beside else params["n_ctx"]
    default = BATCH_WHOLE if looks_both_ways(config, model) else BATCH_IN_PIECES
    n_batch = min(n_ctx, config.n_batch or default, config.n_ubatch or default)
    return params | {
        "embeddings": True,
        "pooling_type": pooling_type(config, model),
        "kv_unified": True,
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": n_batch,
        "n_seq_max": min(n_batch, params["n_seq_max"]),
    }


def pooling_type(config: ModelConfig, model: Model) -> int:
    """The config's, else the GGUF's; else the mean where attention looks both ways and the last token where only that
    one has seen everything."""
    if config.pooling_type is not None and config.pooling_type >= 0:
        return config.pooling_type
    stored = _key(config, model, "pooling_type")
    if stored is not None and 0 <= stored < len(POOLINGS):
        return stored
    return MEAN if looks_both_ways(config, model) else LAST


def create_embedder(config: ModelConfig, path: Path, context: Context, pace: Pace) -> tuple[Embedder, EmbeddingInfo]:
    """Raises ModelLoadError for a ranking without the tensors of one, ConfigError for a batch nothing fits in."""
    model = context.model
    pooling = POOLINGS[context.pooling_type]
    in_parts = int(model.metadata("split.count") or 1) > 1
    heads = {"cls.weight", "cls.output.weight"}
    if pooling == "rank" and not in_parts and heads.isdisjoint(Gguf(str(path)).tensors()):
        raise ModelLoadError(f"{path}: pooling_type 4 (rank) needs a classification head, and this model has none")
    try:
        embedder = Embedder(context, pace=asdict(pace), whole=looks_both_ways(config, model))
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    architecture = model.metadata("general.architecture")
    return embedder, EmbeddingInfo(
        pooling=pooling,
        width=embedder.width,
        max_tokens=min(embedder.max_tokens, model.n_ctx_train, config.max_seq_len or model.n_ctx_train),
        softmax_rank=architecture in SOFTMAX_RANK,
        rerank_template=model.chat_template("rerank"),
    )


def _key(config: ModelConfig, model: Model, name: str) -> int | None:
    """An integer or bool of the GGUF's architecture keys, as overridden; None where there is none."""
    key = f"{model.metadata('general.architecture')}.{name}"
    value = (config.kv_overrides or {}).get(key, model.metadata(key))
    if value in ("true", "false"):
        return int(value == "true")
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
