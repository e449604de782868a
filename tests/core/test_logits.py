"""The kernels against numpy, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import CDLL, byref, c_bool, c_double, c_float, c_int32, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast._core import draw

Floats = npt.NDArray[np.float32]

BLOCK, SLACK, BOUND = 256, 16, 1.0616
CANARY = np.float32(12345.0)
SIZES = (1, 7, 16, 255, 256, 257, 513, 4096, 70001)
LOWEST = np.finfo(np.float32).min

lib = CDLL(draw.__file__)
lib.logits_use.argtypes = [c_int32]
lib.logits_max.argtypes = [c_void_p, c_int32, c_void_p]
lib.logits_max.restype = c_float
lib.logits_sum_exp.argtypes = [c_void_p, c_int32, c_float, c_void_p, c_void_p, c_void_p]
lib.logits_sum_exp.restype = c_double
lib.logits_bound_sum_exp.argtypes = lib.logits_sum_exp.argtypes
lib.logits_bound_sum_exp.restype = c_double
lib.logits_weights.argtypes = [c_void_p, c_int32, c_float, c_float, c_void_p]
lib.logits_weights.restype = c_double
lib.logits_find.argtypes = [c_void_p, c_int32, c_void_p, c_float]
lib.logits_find.restype = c_int32
lib.logits_gather.argtypes = [c_void_p, c_int32, c_void_p, c_float, c_void_p, c_void_p]
lib.logits_gather.restype = c_int32
lib.logits_compact.argtypes = [c_void_p, c_int32, c_float, c_void_p, c_void_p]
lib.logits_compact.restype = c_int32
lib.logits_select.argtypes = [c_void_p, c_int32, c_double, c_bool, c_float, c_float, c_void_p]
lib.logits_select.restype = c_float
for upto in (lib.logits_weight_upto, lib.logits_bound_upto):
    upto.argtypes = [c_void_p, c_int32, c_float, c_double, c_void_p, c_void_p, c_float]
    upto.restype = c_double
lib.logits_draw.argtypes = [c_void_p, c_int32, c_float, c_void_p, c_void_p, c_double, c_float, c_void_p]
lib.logits_draw.restype = c_int32
lib.logits_mask.argtypes = [c_void_p, c_int32, c_void_p]
lib.logits_mask.restype = None
lib.logits_uniforms.argtypes = [c_uint64, c_uint32, c_uint32, c_uint32, c_void_p]
lib.logits_uniforms.restype = None

BEST = lib.logits_use(99)


@pytest.fixture(params=range(BEST + 1), ids=("baseline", "avx2", "avx512")[: BEST + 1], autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    assert lib.logits_use(request.param) == request.param
    yield
    lib.logits_use(BEST)


def room(n: int, dtype: type = np.float32) -> npt.NDArray[Any]:
    """n entries, the slack a kernel may write, and canaries that it may not."""
    return np.full(n + SLACK + 8, CANARY, dtype)


def untouched(array: npt.NDArray[Any], n: int) -> bool:
    return bool((array[n + SLACK :] == CANARY).all())


def blocks(n: int) -> int:
    return -(-n // BLOCK)


def rows(n: int) -> Iterator[Floats]:
    rng = np.random.default_rng(n)
    row = rng.normal(0, 3, n).astype(np.float32)
    yield row
    yield np.zeros(n, np.float32)
    yield np.round(row)
    holes = row.copy()
    holes[rng.random(n) < 0.3] = -np.inf
    holes[rng.random(n) < 0.1] = np.nan
    holes[n // 2] = 1.5
    yield holes


def maxima(row: Floats) -> tuple[float, Floats]:
    block_max = room(blocks(len(row)))
    return lib.logits_max(row.ctypes.data, len(row), block_max.ctypes.data), block_max


@pytest.mark.parametrize("n", SIZES)
def test_max_and_find(n: int) -> None:
    for row in rows(n):
        largest, block_max = maxima(row)
        clean = np.where(np.isnan(row), -np.inf, row)
        assert largest == clean.max()
        assert lib.logits_find(row.ctypes.data, n, block_max.ctypes.data, largest) == clean.argmax()
        expected = [clean[at : at + BLOCK].max() for at in range(0, n, BLOCK)]
        np.testing.assert_array_equal(block_max[: blocks(n)], expected)
        assert untouched(block_max, blocks(n) - SLACK)


def test_find_without_a_match() -> None:
    row = np.full(300, np.nan, np.float32)
    largest, block_max = maxima(row)
    assert largest == -np.inf
    assert lib.logits_find(row.ctypes.data, 300, block_max.ctypes.data, 1.0) == -1


def test_weights_are_accurate() -> None:
    x = np.concatenate([np.linspace(-84, 0, 20001), -np.geomspace(1e-30, 1, 1001), [0, -np.inf, np.nan, -1e30, LOWEST]])
    x = x.astype(np.float32)
    weight = room(len(x))
    total = lib.logits_weights(x.ctypes.data, len(x), 0.0, 1.0, weight.ctypes.data)
    assert untouched(weight, len(x))
    got = weight[: len(x)].astype(np.float64)
    assert got[-4:].tolist() == [0, 0, 0, 0]
    assert got[-5] == 1
    exact = np.exp(x[:-4].astype(np.float64))
    error = np.abs(got[:-4] / exact - 1)
    assert error[x[:-4] >= -15].max() < 1e-6
    assert error.max() < 1e-5
    assert total == pytest.approx(got.sum(), rel=1e-6)


def sums(
    row: Floats, scale: float, sum_exp: Callable[..., float] = lib.logits_sum_exp
) -> tuple[float, Floats, Floats, float]:
    """The total, of every block the largest entry and the sum, and the largest entry."""
    block_max, block_sum, largest = room(blocks(len(row))), room(blocks(len(row))), c_float()
    buffers = block_max.ctypes.data, block_sum.ctypes.data, byref(largest)
    total = sum_exp(row.ctypes.data, len(row), scale, *buffers)
    assert untouched(block_sum, blocks(len(row)) - SLACK)
    return total, block_max, block_sum, largest.value


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0, 0.0])
@pytest.mark.parametrize("n", SIZES)
def test_sum_exp(n: int, scale: float) -> None:
    for row in rows(n):
        total, _, block_sum, largest = sums(row, scale)
        clean = np.where(np.isnan(row), -np.inf, row).astype(np.float64)
        assert largest == clean.max()
        exact = np.where(np.isfinite(clean), np.exp((clean - clean.max()) * (scale or 1e-300)), 0)
        assert total == pytest.approx(exact.sum(), rel=2e-6)
        expected = [exact[at : at + BLOCK].sum() for at in range(0, n, BLOCK)]
        np.testing.assert_allclose(block_sum[: blocks(n)], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0, 0.0])
@pytest.mark.parametrize("n", SIZES)
def test_bounds_of_sums(n: int, scale: float) -> None:
    for row in (*rows(n), *(row * np.float32(1000) for row in rows(n))):
        total, block_max, block_sum, largest = sums(row, scale)
        bound, *rest = sums(row, scale, lib.logits_bound_sum_exp)
        assert total * (1 - 1e-6) <= bound <= total * BOUND
        np.testing.assert_array_equal(rest[0], block_max)
        assert rest[2] == largest
        exact, bounds = block_sum[: blocks(n)], rest[1][: blocks(n)]
        # what is below 2^-124 is 0 to the sums
        assert (bounds >= exact * (1 - 1e-5)).all()
        assert (bounds <= exact * BOUND + 1e-35).all()


@pytest.mark.parametrize("n", SIZES)
def test_gather_and_compact(n: int) -> None:
    for row in rows(n):
        largest, block_max = maxima(row)
        for threshold in (LOWEST, np.float32(0.25), np.float32(largest)):
            value, index = room(n), room(n, np.int32)
            kept = lib.logits_gather(
                row.ctypes.data, n, block_max.ctypes.data, threshold, value.ctypes.data, index.ctypes.data
            )
            expected = np.flatnonzero(row >= threshold)
            np.testing.assert_array_equal(index[:kept], expected)
            np.testing.assert_array_equal(value[:kept], row[expected])
            assert untouched(value, n)
            assert untouched(index, n)
            key = np.arange(kept, dtype=np.float32) % 5
            again = lib.logits_compact(key.ctypes.data, kept, 2.0, value.ctypes.data, index.ctypes.data)
            np.testing.assert_array_equal(index[:again], expected[key >= 2])
            np.testing.assert_array_equal(value[:again], row[expected[key >= 2]])


def threshold_by_sorting(x: Floats, target: float, by_value: bool) -> float:
    ordered = np.sort(x)[::-1]
    mass = np.cumsum(ordered.astype(np.float64) if by_value else np.ones(len(x)))
    return float(ordered[int((mass < target).sum())])


def select(x: Floats, target: float, by_value: bool, low: float, high: float) -> float:
    narrowed = room(len(x))
    result = lib.logits_select(x.ctypes.data, len(x), target, by_value, low, high, narrowed.ctypes.data)
    assert untouched(narrowed, len(x))
    return float(result)


def agrees(make: Callable[[np.random.Generator, int], Floats], n: int, by_value: bool) -> None:
    x = make(np.random.default_rng(n), n).astype(np.float32)
    whole = float(x.sum(dtype=np.float64)) if by_value else n
    low, high = 0 if by_value else -np.inf, float(x.max())
    for share in (1e-6, 0.01, 0.37, 0.95):
        target = max(share * whole, 1e-30) if by_value else max(1, round(share * n))
        assert select(x, target, by_value, low, high) == threshold_by_sorting(x, target, by_value)
    assert select(x, 1.5 * whole, by_value, low, high) <= x.min()


@pytest.mark.parametrize("n", [1, 5, 32, 33, 300, 20011])
def test_select_finds_what_sorting_finds(n: int) -> None:
    agrees(lambda rng, n: rng.normal(0, 3, n), n, by_value=False)
    agrees(lambda rng, n: np.round(rng.normal(0, 3, n)), n, by_value=False)
    agrees(lambda rng, n: np.full(n, -2.5), n, by_value=False)
    agrees(lambda rng, n: rng.choice(np.array([-np.inf, LOWEST, -0.0, 0.0, 1e-40, -LOWEST]), n), n, by_value=False)
    agrees(lambda rng, n: rng.integers(0, 64, n) / 64, n, by_value=True)
    agrees(lambda rng, n: np.ldexp(1.0, -rng.integers(0, 20, n)), n, by_value=True)
    agrees(lambda rng, n: np.full(n, 0.125), n, by_value=True)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200), st.integers(1, 250))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_select_of_any_floats(values: list[float], k: int) -> None:
    x = np.array(values, np.float32)
    got = select(x, k, False, -np.inf, float(x.max()))
    if k <= len(x):
        assert got == threshold_by_sorting(x, k, False)
    else:
        assert got <= x.min()


def test_select_with_a_tight_bound() -> None:
    """The lower bound need not bound the entries, only the threshold."""
    x = np.repeat(np.ldexp(np.float32(1), -np.arange(100)), 3).astype(np.float32)
    target = 0.9 * float(x.sum(dtype=np.float64))
    low = 0.1 * float(x.sum(dtype=np.float64)) / len(x)
    assert select(x, target, True, low, 1.0) == threshold_by_sorting(x, target, True)


def upto(which: Callable[..., float], row: Floats, limit: float, enough: float, known: tuple[Any, ...]) -> float:
    _, block_max, block_sum, largest = known
    buffers = block_max.ctypes.data, block_sum.ctypes.data
    return which(row.ctypes.data, len(row), limit, enough, *buffers, largest)


@pytest.mark.parametrize("n", [7, 256, 3001])
def test_weights_upto_a_limit(n: int) -> None:
    exactly, at_most = lib.logits_weight_upto, lib.logits_bound_upto
    for row in rows(n):
        known, bounds = sums(row, 1.0), sums(row, 1.0, lib.logits_bound_sum_exp)
        clean = np.where(np.isnan(row), -np.inf, row).astype(np.float64)
        for limit in (clean.max(), clean.max() - 1, float(np.median(clean)), -50.0):
            exact = np.exp(clean[clean <= np.float32(limit)] - clean.max()).sum()
            weight = upto(exactly, row, limit, 1e9, known)
            assert weight == pytest.approx(exact, rel=1e-5, abs=1e-30)
            assert weight * (1 - 1e-6) <= upto(at_most, row, limit, 1e9, bounds) <= weight * BOUND + 1e-30
            assert weight * 0.5 <= upto(exactly, row, limit, weight * 0.5, known) <= weight
            assert upto(exactly, row, limit, -1.0, known) == upto(at_most, row, limit, -1.0, bounds) == 0


def drawn(row: Floats, scale: float, known: tuple[float, Floats, Floats, float], *u: float) -> int:
    total, _, block_bound, largest = known
    weight, both = room(BLOCK), np.array(u)
    buffers = both.ctypes.data, block_bound.ctypes.data, total, largest, weight.ctypes.data
    index = lib.logits_draw(row.ctypes.data, len(row), scale, *buffers)
    assert untouched(weight, BLOCK)
    return int(index)


def draw(row: Floats, scale: float, u: float) -> int:
    return drawn(row, scale, sums(row, scale), u, 0.0)


@pytest.mark.parametrize("n", [7, 1000])
def test_draws_by_bounds_that_are_accepted_have_the_distribution(n: int) -> None:
    rng = np.random.default_rng(n)
    for row in rows(n):
        known = sums(row, 0.5, lib.logits_bound_sum_exp)
        clean = np.where(np.isnan(row), -np.inf, row).astype(np.float64)
        share = np.exp((clean - clean.max()) / 2)
        share /= share.sum()
        tries = [drawn(row, 0.5, known, *u) for u in rng.random((4000, 2))]
        accepted = np.array([index for index in tries if index >= 0])
        assert len(accepted) > 4000 / BOUND - 200
        got = np.bincount(accepted, minlength=n)
        # of every block and of the likeliest entry: four standard deviations
        for part in [np.arange(n) // BLOCK == block for block in range(blocks(n))] + [np.arange(n) == share.argmax()]:
            expected = share[part].sum() * len(accepted)
            assert abs(got[part].sum() - expected) <= 4 * np.sqrt(expected * (1 - share[part].sum())) + 1e-9
        assert not got[~np.isfinite(clean)].any()


def test_a_block_that_weighs_nothing_is_never_drawn() -> None:
    row = np.full(600, -np.inf, np.float32)
    row[300] = 1.0
    total, block_max, block_sum, largest = sums(row, 1.0)
    block_sum[0] = total  # as if rounding had given it something
    assert drawn(row, 1.0, (2 * total, block_max, block_sum, largest), 0.2, 0.0) == -1
    assert drawn(row, 1.0, (2 * total, block_max, block_sum, largest), 0.7, 0.0) == 300


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_draw_inverts_the_distribution(n: int) -> None:
    """A grid of u gives every entry its share of the grid, to one grid point at either end."""
    for row in rows(n):
        clean = np.where(np.isnan(row), -np.inf, row).astype(np.float64)
        share = np.exp((clean - clean.max()) / 2)
        share /= share.sum()
        grid = (np.arange(1000) + 0.5) / 1000
        got = np.bincount([draw(row, 0.5, u) for u in grid], minlength=n)
        assert np.abs(got - share * 1000).max() <= 1.01
        assert not got[~np.isfinite(clean)].any()


def test_draw_at_the_ends() -> None:
    row = np.full(1000, -np.inf, np.float32)
    row[[300, 301, 600]] = 0, -100, 0
    assert draw(row, 1.0, 0.0) == 300
    assert draw(row, 1.0, np.nextafter(0.5, 1)) == 600
    assert draw(row, 1.0, np.nextafter(1, 0)) == 600


def philox(key: int, position: int, draw: int, attempt: int) -> tuple[int, ...]:
    """Philox 4x32-10 as the paper has it, on Python's integers."""
    low = 0xFFFFFFFF
    c, k = (position, draw, attempt, 0), (key & low, key >> 32)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = (b >> 32 ^ c[1] ^ k[0], b & low, a >> 32 ^ c[3] ^ k[1], a & low)
        k = ((k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low)
    return c


def test_uniform_is_philox() -> None:
    assert philox(0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # the authors' known answer
    for counter in [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (2**64 - 1, 2**31 - 1, 1, 7),
        (0x0123456789ABCDEF, 4097, 0, 2),
    ]:
        a, b, c, d = philox(*counter)
        u = np.zeros(2)
        lib.logits_uniforms(*counter, u.ctypes.data)
        assert u.tolist() == [(a << 21 | b >> 11) / 2**53, (c << 21 | d >> 11) / 2**53]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 70, 512, 70001])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_mask_rules_out_what_is_not_allowed(n: int, share: float) -> None:
    allowed = np.random.default_rng(n).random(n) < share
    words = np.packbits(np.pad(allowed, (0, -n % 32)), bitorder="little").view(np.uint32)
    x = np.append(np.arange(n, dtype=np.float32), CANARY)
    lib.logits_mask(x.ctypes.data, n, words.ctypes.data)
    assert (x[:n] == np.where(allowed, np.arange(n, dtype=np.float32), -np.inf)).all()
    assert x[n] == CANARY
