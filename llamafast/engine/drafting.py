"""What the config says of drafts, and the core's Drafter for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafast._core import nextn
from llamafast._core.context import Context
from llamafast._core.draft_model import DraftModel
from llamafast._core.drafter import Drafter
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine.placement import computes_bare, placement_of
from llamafast.errors import ConfigError, ModelLoadError

logger = logging.getLogger(__name__)

# How long steps are timed when a model is loaded, at most, but for three steps where these take longer.
TIMING_SECONDS = 0.3
# The same of calls of a model that drafts.
CALLING_SECONDS = 0.25
# Host memory for what was answered lately: about a million tokens.
ANSWERS_BYTES = 1 << 24
# Tokens of a draft, the core's bound.
MAX_DRAFT = 64
# Recurrent states that are kept for taking rows back: each is as large as the sequence's own.
MAX_STATES = 8
LOOKUP, MTP = "prompt-lookup-decoding", "draft-mtp"
# Rows of a batch of the draft model's: prompts are computed in slices that are short beside a step.
DRAFT_BATCH = 512
# Differing tokens that are told of.
NAMED = 3
ONLY_EMBEDS = "model.draft_model: draft-simple: the model only embeds, and nothing is drafted for it"


def most_drafted(config: ModelConfig) -> int:
    """Tokens of a draft; 0 or less: nothing is drafted."""
    return 0 if config.drafts == () else min(config.draft_model_num_pred_tokens, MAX_DRAFT)


def draft_params(config: ModelConfig, model: Model) -> dict[str, Any]:
    """What of llama_context_params drafts need: states to go back to, where memory cannot be cut."""
    if not config.drafts or not (model.is_recurrent or model.is_hybrid) or most_drafted(config) <= 0:
        return {}
    return {"n_rs_seq": min(most_drafted(config), MAX_STATES)}


def draft_model_params(config: ModelConfig, model: Model, n_ctx: int, n_seq_max: int) -> dict[str, Any]:
    """The llama_context_params of the draft ``model``'s own context, beside one of ``n_ctx`` cells for ``n_seq_max``
    sequences. Its keys and values are f16: coarser ones make bad drafts."""
    rows = min(n_ctx, max(DRAFT_BATCH, 2 * n_seq_max))
    threads = config.draft_model_threads or placement_of(config).threads
    return {
        "n_ctx": n_ctx,
        "n_batch": rows,
        "n_ubatch": rows,
        # what memory that cannot be cut drafts is a copy's
        "n_seq_max": n_seq_max * (2 if model.is_recurrent or model.is_hybrid else 1),
        "n_outputs_max": n_seq_max,
        "n_threads": threads,
        "n_threads_batch": config.draft_model_threads_batch or threads,
        "kv_unified": True,
        "offload_kqv": config.offload_kqv,
        "op_offload": config.op_offload,
    }


def create_drafter(
    config: ModelConfig, context: Context, vocab: Vocab, separate: Model | None = None
) -> Drafter | None:
    """None where the config wants no drafts. Where it says nothing, only what clients predict is drafted. A head that
    is asked for is that of the model, or of a ``separate`` one, which is a small model where one is asked for. Raises
    ConfigError for a head that is not there or a small model that does not fit, ModelLoadError where a step fails."""
    most = most_drafted(config)
    if most <= 0:
        return None
    looks_up = LOOKUP in (config.drafts or ())
    try:
        head, model = None, None
        if config.has_draft_model and context.n_undo and separate is not None:
            model = create_draft_model(config, context, vocab, separate)
            separate = None
        if MTP in (config.drafts or ()) and context.n_undo:
            head = create_head(config, context, separate or context.model)
        drafter = Drafter(
            context,
            most=most,
            most_sequences=min(config.draft_model_max_batch_size or context.n_seq_max, context.n_seq_max),
            looks_up=looks_up,
            answers_bytes=ANSWERS_BYTES,
            head=head,
            model=model,
        )
        began = time.monotonic()
        times = drafter.time_steps(max(vocab.bos, 0), TIMING_SECONDS)
    except RuntimeError as error:
        raise ModelLoadError(f"the model does not compute: {error}") from error
    if not context.n_undo:
        told = logger.warning if config.drafts else logger.info
        told("drafts   none: this memory does not forget single tokens")
        return drafter
    rows = max(rows for rows in times if rows <= 8)
    sources = ["what was said before"] * looks_up + ["a head of the model's"] * (head is not None)
    sources += [] if model is None else [f"the draft model {_file_name(config)}"]
    logger.info(
        "drafts   of up to %d tokens, from %s; a step of %d rows takes %.2f times one of 1 (timed in %.2f s)",
        min(most, context.n_undo),
        " and ".join(sources) or "what clients predict",
        rows,
        times[rows] / times[1],
        time.monotonic() - began,
    )
    return drafter


def create_head(config: ModelConfig, context: Context, model: Model) -> nextn.Head | None:
    """The head of ``model``, timed; None where this llama.cpp lacks what it takes, which is told."""
    if not nextn.available():
        logger.warning("drafts   by no head: this llama.cpp lacks what they need")
        return None
    if model.n_heads < 1:
        raise ConfigError("model.draft_model: draft-mtp: the GGUF has no layer that drafts (nextn_predict_layers)")
    threads = config.draft_model_threads or placement_of(config).threads
    try:
        head = nextn.Head(
            context,
            model,
            n_threads=threads,
            n_threads_batch=config.draft_model_threads_batch or threads,
            least=config.draft_model_p_min,
        )
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model.draft_model: draft-mtp: {error}") from error
    head.time_calls(CALLING_SECONDS)
    return head


def create_draft_model(config: ModelConfig, context: Context, vocab: Vocab, model: Model) -> DraftModel:
    """The small ``model`` with a context of its own, timed. Raises ConfigError, RuntimeError where it does not compute,
    ModelLoadError where there is no memory for it."""
    own_vocab = Vocab(model)
    if model.has_encoder:
        raise ConfigError("model.draft_model: draft-simple: the draft model does not generate")
    check_vocabularies(vocab, own_vocab)
    try:
        own = Context(
            model,
            bare=computes_bare(model),
            **draft_model_params(config, model, context.n_ctx, context.n_seq_max),
        )
        own.warm_up(max(own_vocab.bos, 0))
        draft_model = DraftModel(
            context, own, n_shared=min(vocab.n_tokens, own_vocab.n_tokens), least=config.draft_model_p_min
        )
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model.draft_model: draft-simple: {error}") from error
    draft_model.time_calls(CALLING_SECONDS)
    return draft_model


def check_draft_model(params: Mapping[str, Any], vocab: Vocab, path: Path) -> None:
    """The same beside a context of these ``params``, without loading it. Raises ConfigError, ModelLoadError."""
    if params.get("embeddings"):
        raise ConfigError(ONLY_EMBEDS)
    check_vocabularies(vocab, Vocab(Model(str(path), vocab_only=True)))


def check_positions(path: Path, longest: int) -> None:
    """Raises ConfigError where a draft model has a table of fewer positions than the ``longest`` text: llama.cpp ends
    the process where it is asked for others."""
    table = Gguf(str(path)).tensors().get("position_embd.weight")
    if table is not None and table.shape[1] < longest:
        raise ConfigError(
            f"model.draft_model: draft-simple: the draft model knows {table.shape[1]} positions, and a text may have "
            f"{longest} tokens; model.max_seq_len says otherwise"
        )


def check_vocabularies(vocab: Vocab, other: Vocab) -> None:
    """Raises ConfigError where a draft model's tokens are not the model's: what it drafts would mean something else.
    Tokens that only one of them has may fill up a table, where they stand for nothing."""
    told = []
    for token in vocab.differing(other, NAMED):
        pieces = [one.piece(token) if token < one.n_tokens else None for one in (vocab, other)]
        kinds = [" (control)" if one.is_control(token) else "" for one in (vocab, other)]
        said = [f"{piece!r}{kind}" if piece is not None else "none" for piece, kind in zip(pieces, kinds, strict=True)]
        told.append(f"token {token} is {said[0]} in the model and {said[1]} in the draft model")
    for name, ours, theirs in (("BOS", vocab.bos, other.bos), ("EOS", vocab.eos, other.eos)):
        if ours != theirs:
            told.append(f"{name} is {_named(vocab, ours)} in the model and {_named(other, theirs)} in the draft model")
    if told:
        raise ConfigError(f"model.draft_model: draft-simple needs a model of the same vocabulary: {'; '.join(told)}")


def _file_name(config: ModelConfig) -> str:
    source = config.draft_source
    return source.rpartition("/")[2] if isinstance(source, str) else source.filename if source else ""


def _named(vocab: Vocab, token: int) -> str:
    return "none" if token < 0 else f"token {token} ({vocab.text(token)})"
