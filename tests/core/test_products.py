"""Products with weights against ggml's own, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from benchmarks.ggml_products import TYPES, Array, Products, lib, quantised

LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "nvfp4")
OF_256 = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")
QUANTISED = (*LEGACY, *OF_256)
FLOATS = ("f32", "f16", "bf16")
LEVELS = {1: "avx2", 3: "avx512_vnni", 4: "avx512_bf16"}
BEST = lib.products_use(99)
HERE = [level for level in LEVELS if level <= BEST]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 64, 65)
# how many rows are tried in every shape; what depends on their number alone is tried with all of them, bit for bit
SOME_OR_ALL = pytest.mark.parametrize("of_rows", [(1, 2, 5, 65), pytest.param((*ROWS, 200), marks=pytest.mark.heavy)])
random = np.random.default_rng(3)


# nothing that is quantised is multiplied otherwise on the last level
@pytest.fixture(params=[level for level in HERE if level < 4], ids=LEVELS.get, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    assert lib.products_use(request.param) == request.param
    yield LEVELS[request.param]
    lib.products_use(BEST)


on_every_level = pytest.mark.parametrize("level", HERE, ids=LEVELS.get, indirect=True)


def heavy(*names: str) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.heavy) for name in names]


@cache
def stored(type_name: str) -> Array:
    """101 different rows of 1536 columns, in bytes: some types take long to be quantised."""
    data = quantised(type_name, random.standard_normal((101, 1536), np.float32))
    return np.frombuffer(data, np.uint8).reshape(101, -1)


def matrix(type_name: str, n_rows: int, n_columns: int) -> tuple[str, int, bytes]:
    """The first columns of those rows, which come again where more are wanted."""
    rows = stored(type_name)[:, : lib.ggml_row_size(TYPES[type_name], n_columns)]
    return type_name, n_rows, np.resize(rows, (n_rows, rows.shape[1])).tobytes()


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


@SOME_OR_ALL
@pytest.mark.parametrize("type_name", QUANTISED)
def test_shapes(type_name: str, of_rows: tuple[int, ...]) -> None:
    columns = (32, 96, 288, 576) if type_name in LEGACY else (256, 512, 1536)
    columns = (64, 192, 320, 576) if type_name == "nvfp4" else columns
    for n_columns in columns:
        for n_rows in (16, 17, 31, 100):
            weights = matrix(type_name, n_rows, n_columns)
            for rows in of_rows:
                check([weights], activations(rows, n_columns))


@on_every_level
@SOME_OR_ALL
@pytest.mark.parametrize("type_name", FLOATS)
def test_floats(type_name: str, level: str, of_rows: tuple[int, ...]) -> None:
    """ggml rounds activations to the weights' type. These do not, but for BF16 where the processor multiplies it."""
    for n_columns in (16, 64, 80, 576):
        for n_rows in (16, 17, 31, 100):
            weights = random.standard_normal((n_rows, n_columns), np.float32)
            if type_name == "bf16":
                weights = (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)
            elif type_name == "f16":
                weights = weights.astype(np.float16).astype(np.float32)
            for rows in of_rows:
                x = activations(rows, n_columns)
                (got,) = ours(Products([(type_name, n_rows, quantised(type_name, weights))], x), 1 + rows % 3)
                if (type_name, level, n_columns % 32) == ("bf16", "avx512_bf16", 0):
                    x = rounded(x)
                wanted = x.astype(np.float64) @ weights.T.astype(np.float64)
                np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("n_threads", [2, 3, 5])
@pytest.mark.parametrize("type_name", ["q4_1", "q3_k", "q6_k", *heavy("q8_0", "q4_k")])
def test_threads(type_name: str, n_threads: int) -> None:
    """Fewer strips than threads, more of them, and a last one that is short."""
    for n_rows in (16, 40, 200):
        weights = matrix(type_name, n_rows, 512)
        for rows in (1, 2, 7, 65):
            check([weights], activations(rows, 512), n_threads)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_several_products_share_is_quantised_once_for_each_kind(n_threads: int) -> None:
    weights = [matrix(name, 48, 256) for name in QUANTISED]
    check(weights, activations(9, 256), n_threads)


class Experts:
    """Products of several slots of tokens with the matrices that are chosen for each."""

    def __init__(self, type_name: str, *, tokens: int, slots: int, experts: int = 8, n_rows: int = 40) -> None:
        every = [matrix(name, experts * n_rows, 512) for name in (type_name, "q8_0")]
        self.weights = [(name, n_rows, data) for name, _, data in every]
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
@pytest.mark.parametrize("type_name", ["q4_1", "mxfp4", "q3_k", *heavy("q5_0", "q4_k", "q6_k")])
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


def check_rows_alone(type_name: str) -> None:
    weights, x = matrix(type_name, 112, 768), activations(65, 768)
    alone = np.concatenate([ours(Products([weights], row[None]))[0] for row in x])
    for rows in ROWS:
        (together,) = ours(Products([weights], x[:rows]), 1 + rows % 3)
        assert (together == alone[:rows]).all()


@pytest.mark.parametrize("type_name", QUANTISED)
def test_a_row_does_not_depend_on_the_others_nor_on_the_threads(type_name: str) -> None:
    """Bit for bit."""
    check_rows_alone(type_name)


@on_every_level
@pytest.mark.parametrize("type_name", FLOATS)
def test_a_row_of_floats_does_not_either(type_name: str) -> None:
    check_rows_alone(type_name)


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


ONE, LARGE, LARGEST = np.float16(1).tobytes(), b"\xa0", b"\x7e"  # in E8M0 2^33, in UE4M3 448
# where a block has its own scales, what they are set to, and how long it is
SCALES: dict[str, tuple[tuple[int, ...], bytes, int]] = {
    "q4_0": ((0,), ONE, 18), "q4_1": ((0, 2), ONE, 20), "q5_0": ((0,), ONE, 22), "q5_1": ((0, 2), ONE, 24),
    "q8_0": ((0,), ONE, 34), "iq4_nl": ((0,), ONE, 18), "mxfp4": ((0,), LARGE, 17),
    "nvfp4": ((0, 1, 2, 3), LARGEST, 36), "q2_k": ((80, 82), ONE, 84), "q3_k": ((108,), ONE, 110),
    "q4_k": ((0, 2), ONE, 144), "q5_k": ((0, 2), ONE, 176), "q6_k": ((208,), ONE, 210), "iq4_xs": ((0,), ONE, 136),
}  # fmt: skip


@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0x88, 0xF0, 0xFF])
@pytest.mark.parametrize("type_name", QUANTISED)
def test_nothing_saturates(type_name: str, fill: int) -> None:
    """The largest weights, scales and mins that a block can hold, with activations as large as they are quantised."""
    places, scale, size = SCALES[type_name]
    block = bytearray([fill]) * size
    for at in places:
        block[at : at + len(scale)] = scale
    n_blocks = 8 if type_name == "nvfp4" else 16 if type_name in LEGACY else 2
    weights = (type_name, 16, bytes(block) * n_blocks * 16)
    for rows in (1, 5):
        for sign in (np.ones(512), np.tile([1, -1], 256), np.repeat([1, -1], 256)):
            check([weights], np.tile(127 * sign, (rows, 1)))


@pytest.mark.parametrize("type_name", OF_256)
def test_whatever_bits_a_block_has(type_name: str) -> None:
    """Not only those that ggml writes."""
    places, scale, size = SCALES[type_name]
    data = random.integers(0, 256, (40, 3, size), np.uint8)
    for at in places:
        data[..., at : at + 2] = np.frombuffer(scale, np.uint8)
    for rows in (1, 2, 5, 17):
        check([(type_name, 40, data.tobytes())], activations(rows, 768))


def test_every_exponent_of_mxfp4() -> None:
    """One for each row of weights; the last is NaN in E8M0 and a number in ggml. The smallest are below 2^-126."""
    data = random.integers(0, 256, (256, 17), np.uint8)
    data[:, 0] = np.arange(256)
    x = np.exp2(random.integers(-3, 3, (2, 32)))
    product = Products([("mxfp4", 256, data.tobytes())], x)
    product.compute()
    (wanted,), (got,) = product.results(), ours(product)
    assert (wanted != 0).mean() > 0.9
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_every_scale_of_nvfp4() -> None:
    """Subnormal ones, 127, which is NaN in UE4M3 and 0 in ggml, and those that have a sign, which no type has."""
    data = random.integers(0, 256, (256, 36), np.uint8)
    data[:, :4] = np.arange(256)[:, None]
    x = np.exp2(random.integers(-3, 3, (2, 64)))
    product = Products([("nvfp4", 256, data.tobytes())], x)
    product.compute()
    (wanted,), (got,) = product.results(), ours(product)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted[:, 1]).min())
    assert not got[:, [0, 127, 128]].any()


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
