"""What the config says of drafts, and the core's Drafter for it."""

from __future__ import annotations

import logging
import time
from typing import Any

from llamafast._core import nextn
from llamafast._core.context import Context
from llamafast._core.drafter import Drafter
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError, ModelLoadError

logger = logging.getLogger(__name__)

# How long steps are timed when a model is loaded.
TIMING_SECONDS = 0.5
# Host memory for what was answered lately: about a million tokens.
ANSWERS_BYTES = 1 << 24
# Tokens of a draft, the core's bound.
MAX_DRAFT = 64
# Recurrent states that are kept for taking rows back: each is as large as the sequence's own.
MAX_STATES = 8
LOOKUP, MTP = "prompt-lookup-decoding", "draft-mtp"


def most_drafted(config: ModelConfig) -> int:
    """Tokens of a draft; 0 or less: nothing is drafted."""
    return 0 if config.drafts == () else min(config.draft_model_num_pred_tokens, MAX_DRAFT)


def draft_params(config: ModelConfig, model: Model) -> dict[str, Any]:
    """What of llama_context_params drafts need: states to go back to, where memory cannot be cut."""
    if not config.drafts or not (model.is_recurrent or model.is_hybrid) or most_drafted(config) <= 0:
        return {}
    return {"n_rs_seq": min(most_drafted(config), MAX_STATES)}


def create_drafter(
    config: ModelConfig, context: Context, vocab: Vocab, separate: Model | None = None
) -> Drafter | None:
    """None where the config wants no drafts. Where it says nothing, only what clients predict is drafted; a head that
    is asked for is that of the model, or of a ``separate`` one. Raises ConfigError for a head that is not there,
    ModelLoadError where a step fails."""
    most = most_drafted(config)
    if most <= 0:
        return None
    looks_up = LOOKUP in (config.drafts or ())
    try:
        head = None
        if MTP in (config.drafts or ()) and context.n_undo:
            head = create_head(config, context, separate or context.model)
        drafter = Drafter(
            context,
            most=most,
            most_sequences=min(config.draft_model_max_batch_size or context.n_seq_max, context.n_seq_max),
            looks_up=looks_up,
            answers_bytes=ANSWERS_BYTES,
            head=head,
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
    head.time_calls()
    return head
