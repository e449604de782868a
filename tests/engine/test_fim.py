"""Which tokens fill in: the GGUF's, and what the config says instead."""

from __future__ import annotations

import pytest

from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.config import FimConfig, ModelConfig
from llamafast.engine.fim import read_fim_tokens
from llamafast.engine.model_facts import FimTokens
from llamafast.errors import ConfigError


@pytest.fixture(scope="module")
def vocab(tiny_model):
    return Vocab(Model(str(tiny_model("tiny-llama")), vocab_only=True))


def test_the_config_says_more_than_the_gguf(vocab):
    own = FimTokens(*vocab.fim_tokens())
    assert read_fim_tokens(vocab, ModelConfig(path="m")) == own
    assert read_fim_tokens(vocab, ModelConfig(path="m", spm_infill=True)) == own._replace(suffix_first=True)
    texts = FimConfig(prefix=vocab.text(40), suffix=vocab.text(50), middle="")
    read = read_fim_tokens(vocab, ModelConfig(path="m", fim_tokens=texts))
    assert read == own._replace(prefix=40, suffix=50, middle=-1)


def test_a_text_that_is_no_token_is_refused(vocab):
    with pytest.raises(ConfigError, match=r"model.fim_tokens.suffix: '\[NO SUCH\]' is no token"):
        read_fim_tokens(vocab, ModelConfig(path="m", fim_tokens=FimConfig(suffix="[NO SUCH]")))
