"""Products with quantised weights against ggml's own, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.ggml_products import Array, Products, lib, quantised

LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")
OF_256 = ("q4_k", "q5_k", "q6_k")
LEVELS = {1: "avx2", 3: "avx512_vnni"}
BEST = lib.products_use(99)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 64, 65, 200)
random = np.random.default_rng(3)


@pytest.fixture(params=[level for level in LEVELS if level <= BEST], ids=LEVELS.get, autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    assert lib.products_use(request.param) == request.param
    yield
    lib.products_use(BEST)


def matrix(type_name: str, n_rows: int, n_columns: int) -> tuple[str, int, bytes]:
    return type_name, n_rows, quantised(type_name, random.standard_normal((n_rows, n_columns), np.float32))


def activations(n_rows: int, n_columns: int) -> Array:
    """Rows of numbers of which some are much larger than others, as a model's are."""
    return random.standard_normal((n_rows, n_columns), np.float32) * np.exp(random.standard_normal(n_columns))


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


@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
def test_shapes(type_name: str) -> None:
    columns = (32, 96, 288, 576) if type_name in LEGACY else (256, 512, 1536)
    for n_columns in columns:
        for n_rows in (16, 17, 31, 100):
            weights = matrix(type_name, n_rows, n_columns)
            for rows in ROWS:
                check([weights], activations(rows, n_columns))


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


@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
def test_a_row_does_not_depend_on_the_others_nor_on_the_threads(type_name: str) -> None:
    """Bit for bit."""
    weights, x = matrix(type_name, 112, 768), activations(130, 768)
    alone = np.concatenate([ours(Products([weights], row[None]))[0] for row in x])
    for rows in ROWS[:-1]:
        for n_threads in (1, 2, 3):
            (together,) = ours(Products([weights], x[:rows]), n_threads)
            assert (together == alone[:rows]).all()


@pytest.mark.skipif(BEST < 3, reason="one instruction set")
@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
def test_instruction_sets_agree_bit_for_bit(type_name: str) -> None:
    product = Products([matrix(type_name, 50, 768)], activations(11, 768))
    results = []
    for level in LEVELS:
        lib.products_use(level)
        results += ours(product)
    assert (results[0] == results[1]).all()


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
@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
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


@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
def test_rows_of_zeros(type_name: str) -> None:
    x = activations(5, 256)
    x[1] = x[3, :128] = 0
    check([matrix(type_name, 32, 256)], x)
    (result,) = ours(Products([matrix(type_name, 32, 256)], np.zeros((3, 256))))
    assert not result.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", [*LEGACY, *OF_256])
def test_what_is_not_finite_shows_in_its_own_row_only(type_name: str, wrong: float) -> None:
    x = activations(9, 512)
    x[4, 300] = wrong
    (result,) = ours(Products([matrix(type_name, 32, 512)], x), 2)
    assert np.isnan(result[4]).all()
    assert np.isfinite(np.delete(result, 4, axis=0)).all()


def test_too_few_rows_of_weights_stay_ggmls() -> None:
    product = Products([matrix("q4_1", 7, 256)], activations(3, 256))
    assert product.take() == [False]


def test_floats_and_the_baseline_stay_ggmls() -> None:
    product = Products([matrix("f16", 64, 256), matrix("q4_1", 64, 256)], activations(3, 256))
    assert product.take() == [False, True]
    lib.products_use(0)
    again = Products([matrix("q4_1", 64, 256)], activations(3, 256))
    assert again.take() == [False]
