"""Tokenising and the table of token bytes."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inside import breaker_pairs
from llamafast._core.dry import Breakers
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.errors import ModelLoadError


@pytest.fixture(scope="module")
def vocab(smollm2):
    return Vocab(Model(str(smollm2), vocab_only=True))


@pytest.fixture(scope="module")
def byte_vocab(tiny_model):
    """A vocabulary with a token for every byte; SmolLM2 lacks some."""
    return Vocab(Model(str(tiny_model("tiny-llama")), vocab_only=True))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_pieces_and_detokenize_give_back_the_text(byte_vocab, text):
    vocab = byte_vocab
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text
    assert vocab.detokenize(tokens) == text


def test_control_tokens_are_parsed_only_on_request(vocab):
    assert list(vocab.tokenize("<|im_start|>", add_special=False, parse_special=True)) == [1]
    assert len(vocab.tokenize("<|im_start|>", add_special=False, parse_special=False)) > 1
    assert vocab.text(1) == "<|im_start|>"
    assert vocab.is_control(1)


def test_end_of_generation(vocab):
    assert vocab.eos == 2
    assert 2 in vocab.eog_tokens()
    assert 100 not in vocab.eog_tokens()


@pytest.mark.parametrize("token", [-1, 49152, 2**31 - 1])
def test_ids_outside_the_vocabulary_are_refused(vocab, token):
    with pytest.raises(IndexError):
        vocab.piece(token)
    with pytest.raises(IndexError):
        vocab.detokenize(array("i", [5, token]))
    assert vocab.text(token) == ""


def test_lone_surrogates_are_refused(vocab):
    with pytest.raises(UnicodeEncodeError):
        vocab.tokenize("\ud800", add_special=False, parse_special=False)


def test_empty_text(vocab):
    assert len(vocab.tokenize("", add_special=False, parse_special=True)) == 0
    assert vocab.detokenize(array("i")) == ""


def test_a_file_that_is_no_model_says_why(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelLoadError, match=r"broken\.gguf: .*gguf"):
        Model(str(path))


def test_an_exception_in_the_progress_callback_stops_the_load(smollm2):
    def stop(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Model(str(smollm2), on_progress=stop)


def test_kv_overrides_reach_the_model(smollm2):
    assert Model(str(smollm2), vocab_only=True).n_ctx_train == 8192
    model = Model(str(smollm2), vocab_only=True, kv_overrides={"tokenizer.ggml.eos_token_id": 1})
    assert Vocab(model).eos == 1
    with pytest.raises(ValueError, match="127"):
        Model(str(smollm2), kv_overrides={"x" * 200: True})


def test_breakers_are_all_ways_to_spell_a_text(vocab):
    """Every token that holds the text, and every one that ends with a part of it, with the rest after it."""
    found = breaker_pairs(Breakers.spelling(vocab, (b"he",)))
    pieces = {token: vocab.piece(token) for token in range(vocab.n_tokens)}
    assert {token for token, tail in found if not tail} == {token for token, piece in pieces.items() if b"he" in piece}
    assert all(pieces[token].endswith(b"h") for token, tail in found if tail)
    assert all(b"".join(pieces[t] for t in tail) == b"e" for _, tail in found if tail)
    assert found == sorted(found)
    assert breaker_pairs(Breakers.spelling(vocab, (b"",))) == []
    assert breaker_pairs(Breakers.spelling(vocab, (b"he",), len(found))) == found
    both = breaker_pairs(Breakers.spelling(vocab, (b"he", b"h"), 10_000))
    assert set(found) < set(both) == set(found) | set(breaker_pairs(Breakers.spelling(vocab, (b"h",))))
    for most in (3, len(found) - 1):
        with pytest.raises(ValueError, match=f"more than {most} tokens spell 'he'"):
            Breakers.spelling(vocab, (b"he",), most)
