"""A GGUF as the layers above know it: names, templates, special tokens, what it recommends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine.fim import read_fim_tokens
from llamafast.engine.fingerprint import shards
from llamafast.engine.recommended import recommended_sampling
from llamafast.engine.types import ModelInfo
from llamafast.engine.weights import weights_of


def model_info(config: ModelConfig, path: Path, model: Model, vocab: Vocab, **of_contexts: Any) -> ModelInfo:
    """``of_contexts`` are those fields that the GGUF alone does not tell."""
    return ModelInfo(
        id=config.alias or path.name,
        created=int(time.time()),
        n_vocab=vocab.n_tokens,
        n_ctx_train=model.n_ctx_train,
        max_output_tokens=config.max_output_tokens,
        chat_template=model.chat_template(),
        tool_use_template=model.chat_template("tool_use"),
        control_tokens=tuple(vocab.text(token) for token in range(vocab.n_tokens) if vocab.is_control(token)),
        longest_piece=vocab.longest_piece,
        bos_text=vocab.text(vocab.bos),
        eos_text=vocab.text(vocab.eos),
        description=model.description,
        sampling=recommended_sampling(model),
        fim=read_fim_tokens(vocab, config),
        weights=weights_of(model, shards(path)),
        aliases=config.aliases,
        **of_contexts,
    )
