"""The tokens by which a model fills in: the GGUF's, and what the config says of them."""

from __future__ import annotations

from typing import Any

from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine.model_facts import FimTokens
from llamafast.errors import ConfigError


def read_fim_tokens(vocab: Vocab, config: ModelConfig) -> FimTokens:
    """Raises ConfigError for a text of ``model.fim_tokens`` that is no token of this vocabulary."""
    found = FimTokens(*vocab.fim_tokens(), suffix_first=config.spm_infill)
    if config.fim_tokens is None:
        return found
    ids = {vocab.text(token): token for token in reversed(range(vocab.n_tokens))} | {"": -1}
    said = {name: getattr(config.fim_tokens, name) for name in config.fim_tokens.__struct_fields__}
    for name, text in said.items():
        if text is not None and text not in ids:
            raise ConfigError(f"model.fim_tokens.{name}: {text[:64]!r} is no token of this model")
    named: dict[str, Any] = {name: ids[text] for name, text in said.items() if text is not None}
    return found._replace(**named)
