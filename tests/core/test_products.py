"""Products with weights against ggml's own, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.ggml_products import Array, Products, lib, quantised

LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")
OF_256 = ("q4_k", "q5_k", "q6_k")
QUANTISED = (*LEGACY, *OF_256)
FLOATS = ("f32", "f16", "bf16")
LEVELS = {1: "avx2", 3: "avx512_vnni", 4: "avx512_bf16"}
BEST = lib.products_use(99)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 64, 65, 200)
random = np.random.default_rng(3)


@pytest.fixture(params=[level for level in LEVELS if level <= BEST], ids=LEVELS.get, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    assert lib.products_use(request.param) == request.param
    yield LEVELS[request.param]
    lib.products_use(BEST)


def matrix(type_name: str, n_rows: int, n_columns: int) -> tuple[str, int, bytes]:
    return type_name, n_rows, quantised(type_name, random.standard_normal((n_rows, n_columns), np.float32))


def activations(n_rows: int, n_columns: int) -> Array:
    """Rows of numbers of which some are much larger than others, as a model's are."""
    return random.standard_normal((n_rows, n_columns), np.float32) * np.exp(random.standard_normal(n_columns))


def rounded(x: Array) -> Array:
    """To BF16, to even from the middle."""
    bits = x.astype(np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return upper.astype(np.uint32).view(np.float32)


def ours(product: Products, n_threads: int = 1) -> list[Array]:
    assert all(product.take())
    product.compute(n_threads)
    return product.results()


def check(weights: list[tuple[str, int, bytes]], x: Array, n_threads: int = 1) -> None:
    product = Products(weights, x)
    product.compute()
    expected = product.results()
    for got, wanted in zip(ours(product, n_threads), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("type_name", QUANTISED)
def test_shapes(type_name: str) -> None:
    columns = (32, 96, 288, 576) if type_name in LEGACY else (256, 512, 1536)
    for n_columns in columns:
        for n_rows in (16, 17, 31, 100):
            weights = matrix(type_name, n_rows, n_columns)
            for rows in ROWS:
                check([weights], activations(rows, n_columns))


@pytest.mark.parametrize("type_name", FLOATS)
def test_floats(type_name: str, level: str) -> None:
    """ggml rounds activations to the weights' type. These do not, but for BF16 where the processor multiplies it."""
    for n_columns in (16, 64, 80, 576):
        for n_rows in (16, 17, 31, 100):
            weights = random.standard_normal((n_rows, n_columns), np.float32)
            if type_name == "bf16":
                weights = (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)
            elif type_name == "f16":
                weights = weights.astype(np.float16).astype(np.float32)
            for rows in ROWS:
                x = activations(rows, n_columns)
                (got,) = ours(Products([(type_name, n_rows, quantised(type_name, weights))], x), 1 + rows % 3)
                if (type_name, level, n_columns % 32) == ("bf16", "avx512_bf16", 0):
                    x = rounded(x)
                wanted = x.astype(np.float64) @ weights.T.astype(np.float64)
                np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("n_threads", [2, 3, 5])
@pytest.mark.parametrize("type_name", ["q4_1", "q8_0", "q4_k", "q6_k"])
def test_threads(type_name: str, n_threads: int) -> None:
    """Fewer strips than threads, more of them, and a last one that is short."""
    for n_rows in (16, 40, 1000):
        weights = matrix(type_name, n_rows, 512)
        for rows in (1, 2, 7, 65):
            check([weights], activations(rows, 512), n_threads)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_several_products_share_is_quantised_once_for_each_kind(n_threads: int) -> None:
    weights = [matrix(name, 48, 256) for name in ("q4_k", "q8_0", "q6_k", "q4_1", "q5_0", "q5_k", "q5_1")]
    check(weights, activations(9, 256), n_threads)


class Experts:
    """Products of several slots of tokens with the matrices that are chosen for each."""

    def __init__(self, type_name: str, *, tokens: int, slots: int, experts: int = 8, n_rows: int = 40) -> None:
        weights = random.standard_normal((experts, n_rows, 512), np.float32)
        self.weights = [(name, n_rows, quantised(name, weights)) for name in (type_name, "q8_0")]
        self.ids = np.array([random.permutation(experts)[:slots] for _ in range(tokens)])
        self.experts = experts

    def products(self, x: Array) -> Products:
        """``x``: (tokens, slots or 1, 512)."""
        return Products(self.weights, x, experts=self.experts, ids=self.ids)

    def check(self, x: Array, n_threads: int) -> None:
        product = self.products(x)
        product.compute()
        expected = product.results()
        for got, wanted in zip(ours(product, n_threads), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("type_name", ["q4_1", "q5_0", "q4_k", "q6_k"])
def test_experts(type_name: str, n_threads: int) -> None:
    """Slots share a token's row (gate and up) or have one each (down)."""
    for tokens in (1, 2, 9, 80):
        for slots in (1, 3):
            experts = Experts(type_name, tokens=tokens, slots=slots)
            for per_token in {1, slots}:
                experts.check(activations(tokens * per_token, 512).reshape(tokens, per_token, 512), n_threads)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_one_expert_may_have_all_rows(n_threads: int) -> None:
    experts = Experts("q4_k", tokens=70, slots=1)
    experts.ids[:] = 5
    experts.check(activations(70, 512).reshape(70, 1, 512), n_threads)


def test_a_token_does_not_depend_on_the_others_whatever_experts_they_choose() -> None:
    experts, x = Experts("q4_1", tokens=30, slots=2), activations(30, 512).reshape(30, 1, 512)
    together = ours(experts.products(x), 2)
    ids = experts.ids
    for token in range(30):
        experts.ids = ids[token : token + 1]
        for got, wanted in zip(ours(experts.products(x[token : token + 1])), together, strict=True):
            assert (got[0] == wanted[token]).all()


@pytest.mark.parametrize("type_name", [*QUANTISED, *FLOATS])
def test_a_row_does_not_depend_on_the_others_nor_on_the_threads(type_name: str) -> None:
    """Bit for bit."""
    weights, x = matrix(type_name, 112, 768), activations(130, 768)
    alone = np.concatenate([ours(Products([weights], row[None]))[0] for row in x])
    for rows in ROWS[:-1]:
        for n_threads in (1, 2, 3):
            (together,) = ours(Products([weights], x[:rows]), n_threads)
            assert (together == alone[:rows]).all()


@pytest.mark.parametrize("type_name", QUANTISED)
def test_instruction_sets_agree_bit_for_bit(type_name: str) -> None:
    product = Products([matrix(type_name, 50, 768)], activations(11, 768))
    (own,) = ours(product)
    lib.products_use(min(LEVELS))
    (lowest,) = ours(product)
    assert (own == lowest).all()


def test_a_graph_may_be_computed_again() -> None:
    product = Products([matrix("q4_1", 64, 256), matrix("q8_0", 64, 256)], activations(5, 256))
    first = ours(product, 2)
    for _ in range(3):
        for got, before in zip(ours(product, 2), first, strict=True):
            assert (got == before).all()


# where a block has halves, and how long it is
HALVES = {
    "q4_0": ((0,), 18), "q4_1": ((0, 2), 20), "q5_0": ((0,), 22), "q5_1": ((0, 2), 24), "q8_0": ((0,), 34),
    "iq4_nl": ((0,), 18), "q4_k": ((0, 2), 144), "q5_k": ((0, 2), 176), "q6_k": ((208,), 210),
}  # fmt: skip


@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0x88, 0xF0, 0xFF])
@pytest.mark.parametrize("type_name", QUANTISED)
def test_nothing_saturates(type_name: str, fill: int) -> None:
    """The largest weights, scales and mins that a block can hold, with activations as large as they are quantised."""
    halves, size = HALVES[type_name]
    block = bytearray([fill]) * size
    for at in halves:
        block[at : at + 2] = np.float16(1).tobytes()
    n_blocks = 16 if type_name in LEGACY else 2
    weights = (type_name, 16, bytes(block) * n_blocks * 16)
    for sign in (np.ones(512), np.tile([1, -1], 256), np.repeat([1, -1], 256)):
        check([weights], np.tile(127 * sign, (5, 1)))


@pytest.mark.parametrize("type_name", QUANTISED)
def test_rows_of_zeros(type_name: str) -> None:
    x = activations(5, 256)
    x[1] = x[3, :128] = 0
    check([matrix(type_name, 32, 256)], x)
    (result,) = ours(Products([matrix(type_name, 32, 256)], np.zeros((3, 256))))
    assert not result.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", QUANTISED)
def test_what_is_not_finite_shows_in_its_own_row_only(type_name: str, wrong: float) -> None:
    x = activations(9, 512)
    x[4, 300] = wrong
    (result,) = ours(Products([matrix(type_name, 32, 512)], x), 2)
    assert np.isnan(result[4]).all()
    assert np.isfinite(np.delete(result, 4, axis=0)).all()


def test_too_few_rows_of_weights_stay_ggmls() -> None:
    product = Products([matrix("q4_1", 7, 256)], activations(3, 256))
    assert product.take() == [False]


def test_on_the_baseline_all_stay_ggmls() -> None:
    lib.products_use(0)
    assert Products([matrix("q4_1", 64, 256)], activations(3, 256)).take() == [False]


def test_floats_in_rows_of_odd_lengths_stay_ggmls() -> None:
    assert Products([matrix("f16", 64, 36)], activations(3, 36)).take() == [False]
