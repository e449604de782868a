"""Vectors from packed batches: right against numpy, whatever else is in the batch."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
from msgspec.structs import asdict
from support import tiny_encoders
from support.tiny_encoders import HEADS, WIDTH, WORDS

from core.inside import computes_whole
from llamafast._core.context import Context
from llamafast._core.embedder import Embedder
from llamafast._core.inputs import Input
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.engine.pace import Pace

MEAN, CLS, LAST = 1, 2, 3


def embedder_of(model: Model, n_batch: int = 128, *, whole: bool = False, **params) -> Embedder:
    settings = {"n_ctx": 256, "n_batch": n_batch, "n_ubatch": n_batch, "n_seq_max": 16, "n_threads": 1,
                "n_threads_batch": 1, "embeddings": True, "kv_unified": True, "flash_attn_type": 0}  # fmt: skip
    return Embedder(Context(model, **(settings | params)), pace=asdict(Pace()), whole=whole)


def run(embedder: Embedder, inputs: list[Input], seconds: float = 9.0) -> list[np.ndarray]:
    """The vectors of ``inputs``, each a row or a row a token; more inputs than fit at once wait."""
    waiting, n_finished = list(inputs), 0
    while n_finished < len(inputs):
        while waiting and embedder.fits(waiting[0]):
            embedder.add(waiting.pop(0))
        assert embedder.step(seconds) == 0
        n_finished += len(embedder.take_finished())
    return [np.frombuffer(input.vectors, np.float32) for input in inputs]


def texts(count: int, longest: int = 40) -> list[array]:
    draw = random.Random(3)
    return [array("i", draw.choices(range(WORDS), k=draw.randint(1, longest))) for _ in range(count)]


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def bert(tiny_encoder):
    model = Model(str(tiny_encoder("tiny-bert")))
    return model, Vocab(model)


@pytest.mark.parametrize(("pooling", "reduce"), [(MEAN, lambda x: x.mean(0)), (CLS, lambda x: x[0])])
def test_packed_vectors_are_those_of_a_forward_pass(bert, pooling, reduce):
    model, vocab = bert
    tensors = tiny_encoders.bert_tensors()
    inputs = texts(50)
    vectors = run(embedder_of(model, pooling_type=pooling), [Input(vocab, tokens) for tokens in inputs])
    for tokens, vector in zip(inputs, vectors, strict=True):
        expected = reduce(tiny_encoders.bert_hidden(tensors, list(tokens), HEADS))
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)
        assert cosine(vector, expected) > 0.9999


def test_without_pooling_every_token_has_its_vector(bert):
    model, vocab = bert
    tokens = array("i", [5, 80, 9])
    (rows,) = run(embedder_of(model, pooling_type=0), [Input(vocab, tokens, dimensions=10, normalize=-1)])
    expected = tiny_encoders.bert_hidden(tiny_encoders.bert_tensors(), list(tokens), HEADS)[:, :10]
    np.testing.assert_allclose(rows.reshape(3, 10), expected, atol=2e-2)


def test_a_ranking_is_the_head_on_the_first_token(tiny_encoder):
    model = Model(str(tiny_encoder("tiny-ranker")))
    embedder = embedder_of(model)
    assert embedder.width == 1
    inputs = texts(20)
    scores = run(embedder, [Input(Vocab(model), tokens, normalize=-1) for tokens in inputs])
    tensors = tiny_encoders.bert_tensors(classes=1)
    for tokens, score in zip(inputs, scores, strict=True):
        first = tiny_encoders.bert_hidden(tensors, list(tokens), HEADS)[0]
        hidden = np.tanh(tensors["cls.weight"] @ first + tensors["cls.bias"])
        expected = tensors["cls.output.weight"] @ hidden + tensors["cls.output.bias"]
        np.testing.assert_allclose(score, expected, atol=5e-3)


@pytest.mark.parametrize("pooling", [MEAN, CLS, LAST])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3-swa", "tiny-qwen35"])
def test_a_causal_model_gives_the_same_vectors_in_pieces(tiny_model, name, pooling):
    model = Model(str(tiny_model(name)))
    vocab = Vocab(model)
    inputs = texts(12, longest=100)
    solo = embedder_of(model, pooling_type=pooling, n_seq_max=4)
    alone = [run(solo, [Input(vocab, tokens)])[0] for tokens in inputs]
    packed = embedder_of(model, n_batch=32, pooling_type=pooling, n_seq_max=4)
    together = run(packed, [Input(vocab, tokens) for tokens in inputs], seconds=0.0)
    assert packed.counts()["embedding_steps"] > solo.counts()["embedding_steps"]
    for a, b in zip(alone, together, strict=True):
        assert cosine(a, b) > 0.9999


def test_an_encoder_with_relative_positions(tiny_encoder):
    model = Model(str(tiny_encoder("tiny-t5")))
    vocab = Vocab(model)
    inputs = texts(20)
    alone = [run(embedder_of(model, pooling_type=MEAN), [Input(vocab, tokens)])[0] for tokens in inputs[:4]]
    embedder = embedder_of(model, pooling_type=MEAN)
    assert computes_whole(embedder)
    together = run(embedder, [Input(vocab, tokens) for tokens in inputs])
    for a, b in zip(alone, together, strict=False):
        assert len(a) == WIDTH
        assert cosine(a, b) > 0.9999


@pytest.mark.parametrize("p", [1, 2, 3, 50, 2**31 - 1])
def test_normalising_makes_the_p_norm_one(bert, p):
    model, vocab = bert
    (raw,) = run(embedder_of(model), [Input(vocab, array("i", [1, 2, 3]), normalize=-1)])
    (vector,) = run(embedder_of(model), [Input(vocab, array("i", [1, 2, 3]), normalize=p)])
    order = np.inf if p == 2**31 - 1 else p
    np.testing.assert_allclose(np.linalg.norm(vector.astype(np.float64), order), 1, rtol=1e-5)
    assert cosine(raw, vector) == pytest.approx(1)


def test_normalise_0_scales_to_16_bits_and_dimensions_are_cut_before(bert):
    model, vocab = bert
    tokens = array("i", [1, 2, 3])
    (raw,) = run(embedder_of(model), [Input(vocab, tokens, normalize=-1)])
    (scaled,) = run(embedder_of(model), [Input(vocab, tokens, normalize=0)])
    assert abs(scaled).max() == pytest.approx(32760)
    (cut,) = run(embedder_of(model), [Input(vocab, tokens, dimensions=7)])
    np.testing.assert_allclose(cut, raw[:7] / np.linalg.norm(raw[:7]), rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny-bert-broken", "tiny-llama-broken"])
def test_a_vector_that_is_not_finite_is_none_and_hurts_nobody_else(tiny_encoder, name):
    model = Model(str(tiny_encoder(name)))
    vocab = Vocab(model)
    draw = random.Random(5)
    good = [array("i", draw.choices(range(43, WORDS), k=draw.randint(1, 30))) for _ in range(12)]
    fresh = embedder_of(model, pooling_type=MEAN)
    expected = [run(fresh, [Input(vocab, tokens)])[0] for tokens in good]
    bad = [Input(vocab, array("i", [1, 42, 7])), Input(vocab, array("i", [42]))]
    inputs = [Input(vocab, tokens) for tokens in good]
    embedder = embedder_of(model, n_batch=64, pooling_type=MEAN)
    finished = 0
    waiting = [inputs[0], bad[0], *inputs[1:8], bad[1], *inputs[8:]]
    while finished < 14:
        while waiting and embedder.fits(waiting[0]):
            embedder.add(waiting.pop(0))
        assert embedder.step(0.001) == 0
        finished += len(embedder.take_finished())
    assert [input.vectors for input in bad] == [None, None]
    for input, vector in zip(inputs, expected, strict=True):
        assert cosine(np.frombuffer(input.vectors, np.float32), vector) > 0.9999


def test_a_pair_is_framed_as_its_vocabulary_wants(bert, minilm):
    _, vocab = bert
    bos, eos, sep = (vocab.tokenize(mark, add_special=False, parse_special=True)[0]
                     for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))  # fmt: skip
    first, second = (vocab.tokenize(text, add_special=True, parse_special=False) for text in "ab")
    assert list(vocab.pair(first, second)) == [bos, first[1], eos, sep, second[1], eos]
    words = Vocab(Model(str(minilm), vocab_only=True))
    first, second = (words.tokenize(text, add_special=True, parse_special=False) for text in ("hello", "world"))
    assert list(words.pair(first, second)) == [101, 7592, 102, 2088, 102]


def test_limits(bert):
    model, vocab = bert
    with pytest.raises(ValueError, match="without embeddings"):
        embedder_of(model, embeddings=False)
    with pytest.raises(ValueError, match="must be equal"):
        embedder_of(model, n_ubatch=64)
    embedder = embedder_of(model, n_batch=64)
    assert embedder.max_tokens == 64
    with pytest.raises(ValueError, match="65 tokens"):
        embedder.add(Input(vocab, array("i", [1] * 65)))
    for bad in ([], [-1], [WORDS]):
        with pytest.raises(ValueError, match="token"):
            Input(vocab, array("i", bad))
    assert embedder.step(1.0) == 0
    assert embedder.take_finished() == []
    sixteen = [Input(vocab, array("i", [1])) for _ in range(17)]
    for input in sixteen[:16]:
        embedder.add(input)
    assert not embedder.fits(sixteen[16])


def test_removing_and_clearing_leave_the_rest_right(tiny_model):
    model = Model(str(tiny_model("tiny-llama")))
    vocab = Vocab(model)
    tokens = texts(6, longest=60)
    embedder = embedder_of(model, n_batch=32, pooling_type=LAST)
    expected = [run(embedder, [Input(vocab, text)])[0] for text in tokens]
    inputs = [Input(vocab, text) for text in tokens]
    for input in inputs[:4]:
        embedder.add(input)
    embedder.step(0.0)
    embedder.remove(inputs[0])
    with pytest.raises(ValueError, match="not in list"):
        embedder.remove(inputs[0])
    finished = []
    while len(finished) < 3:
        embedder.step(0.0)
        finished += embedder.take_finished()
    for vector, input in list(zip(expected, inputs, strict=True))[1:4]:
        assert cosine(np.frombuffer(input.vectors, np.float32), vector) > 0.9999
    embedder.add(inputs[4])
    embedder.step(0.0)
    assert embedder.clear() == [inputs[4]]
    (vector,) = run(embedder, [inputs[5]])
    assert cosine(vector, expected[5]) > 0.9999
