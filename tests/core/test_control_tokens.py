"""Cutting a prompt at the template's control tokens changes nothing, with llama.cpp's own tokenisers."""

from __future__ import annotations

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.chat.prompt.control import MARKS, ControlTokens

# texts that no two vocabularies cut alike, with the control tokens of both models
PIECES = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "user", "\n", " ", "  ", "hello", "'s", "é", "12", "<", "|"]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A vocabulary of the kind that puts a space before text, which every cut could put there wrongly."""
    path = tmp_path_factory.mktemp("models") / "sentencepiece.gguf"
    words = ["▁", "he", "ll", "o", "▁he", "hello", "▁hello", "user", "▁user", "h", "e", "l", "u", "s", "er", "'s"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    kinds = gguf.TokenType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [float(len(word)) for word in words])
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(words)]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Vocab(Model(str(path), vocab_only=True))


@pytest.fixture(scope="module")
def byte_pairs(smollm2):
    return Vocab(Model(str(smollm2), vocab_only=True))


@pytest.fixture(scope="module", params=["sentencepiece", "byte_pairs"])
def vocab(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def control(vocab):
    return ControlTokens(vocab.text(token) for token in range(vocab.n_tokens) if vocab.is_control(token))


@settings(deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=20), at=st.integers(0, 20))
def test_a_mark_beside_plain_text_changes_no_token(vocab, control, pieces, at):
    whole = vocab.tokenize("".join(pieces), add_special=False, parse_special=True)
    marked = "".join([*pieces[:at], MARKS[0], *pieces[at:]])
    assert control.tokenize(marked, vocab) == whole


@settings(deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=20))
def test_a_clients_control_tokens_are_the_tokens_of_their_text(vocab, control, pieces):
    text = "".join(pieces)
    bos = vocab.text(vocab.bos)
    tokens = control.tokenize(bos + control.mark(text) + bos, vocab)
    plain = vocab.tokenize(text, add_special=False, parse_special=False)
    assert list(tokens) == [vocab.bos, *plain, vocab.bos]
