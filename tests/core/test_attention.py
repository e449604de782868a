"""The attention kernel against numpy, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast._core import graph

Array = npt.NDArray[Any]

FLASH_ATTN_EXT, F32, F16, Q8_0 = 74, 0, 1, 8


class Tensor(Structure):
    """struct ggml_tensor of ggml.h."""


Tensor._fields_ = [
    ("type", c_int), ("buffer", c_void_p), ("ne", c_int64 * 4), ("nb", c_size_t * 4), ("op", c_int),
    ("op_params", c_float * 16), ("flags", c_int32), ("src", POINTER(Tensor) * 10), ("view_src", c_void_p),
    ("view_offs", c_size_t), ("data", c_void_p), ("name", c_char * 64), ("extra", c_void_p), ("padding", c_char * 8),
]  # fmt: skip

lib = CDLL(graph.__file__)
lib.attention_use.argtypes = [c_int]
lib.attention_take.argtypes = [POINTER(Tensor)]
lib.attention_take.restype = c_bool
lib.attention_compute.argtypes = [POINTER(Tensor), c_int, c_int, c_void_p]
lib.attention_compute.restype = None

BEST = lib.attention_use(99)
random = np.random.default_rng(7)


@pytest.fixture(params=range(BEST + 1), ids=("baseline", "avx2", "avx512")[: BEST + 1], autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[int]:
    assert lib.attention_use(request.param) == request.param
    yield int(request.param)
    lib.attention_use(BEST)


def tensor(array: Array) -> Tensor:
    """A tensor over an array whose first axis is ggml's last one; it may be strided."""
    made = Tensor(type=F32 if array.dtype == np.float32 else F16, data=array.ctypes.data)
    made.ne[:] = array.shape[::-1]
    made.nb[:] = array.strides[::-1]
    return made


def tensor_of_q8_0(array: Array) -> tuple[Tensor, Array, Array]:
    """A tensor of (streams, heads, cells, size) floats as Q8_0, the memory it is over, and what it is worth."""
    block = array.reshape(*array.shape[:3], -1, 32)
    scale = (np.abs(block).max(axis=4, keepdims=True) / 127).astype(np.float16)
    values = np.round(block / scale).astype(np.int8)
    data = np.concatenate([scale.view(np.int8), values], axis=4).transpose(0, 2, 1, 3, 4).copy()
    made = Tensor(type=Q8_0, data=data.ctypes.data)
    made.ne[:] = array.shape[::-1]
    made.nb[:] = [data.strides[i] for i in (3, 1, 2, 0)]
    return made, data, (values * scale.astype(np.float32)).reshape(array.shape)


class Attention:
    """An operation on random values. mask: (streams, rows, cells), what is added to scores; cells lie at random."""

    def __init__(
        self, mask: Array, *, heads: int, kv_heads: int, key_size: int = 32, value_size: int = 32, sinks: bool = False
    ) -> None:
        streams, rows, cells = mask.shape
        made = random.standard_normal
        # as llama.cpp has them: the heads of a row, and those of a cell, lie side by side
        self.q = made((streams, rows, heads, key_size), np.float32).transpose(0, 2, 1, 3)
        self.k = made((streams, cells, kv_heads, key_size), np.float32).astype(np.float16).transpose(0, 2, 1, 3)
        self.v = made((streams, cells, kv_heads, value_size), np.float32).astype(np.float16).transpose(0, 2, 1, 3)
        self.mask = np.full((streams, 1, rows + 3, cells), -np.inf, np.float16)
        self.mask[:, 0, :rows] = mask
        self.sinks = made((1, 1, 1, heads), np.float32) if sinks else None
        self.result = np.full((streams, rows, heads, value_size), np.nan, np.float32)
        self.scale = np.float32(key_size**-0.5)
        self.sources = [tensor(a) for a in (self.q, self.k, self.v, self.mask)]
        self.sources += [tensor(self.sinks)] if self.sinks is not None else []
        self.node = tensor(self.result)
        self.node.op = FLASH_ATTN_EXT
        self.node.op_params[0] = self.scale
        for i, source in enumerate(self.sources):
            self.node.src[i].contents = source

    def quantise(self, keys: bool = True, values: bool = True) -> None:
        """The cache becomes one of Q8_0, or half of it."""
        if keys:
            self.node.src[1].contents, self.quantised_keys, self.k = tensor_of_q8_0(self.k)
        if values:
            self.node.src[2].contents, self.quantised_values, self.v = tensor_of_q8_0(self.v)

    def taken(self) -> bool:
        return bool(lib.attention_take(self.node))

    def compute(self, n_threads: int) -> Array:
        """(streams, rows, heads, value size); the threads go in turn."""
        for i in range(n_threads):
            lib.attention_compute(self.node, i, n_threads, None)
        return self.result

    def expected(self) -> Array:
        rows, group = self.q.shape[2], self.q.shape[1] // self.k.shape[1]
        k, v = (np.repeat(a.astype(np.float64), group, axis=1) for a in (self.k, self.v))
        score = self.q.astype(np.float64) @ k.swapaxes(2, 3) * self.scale + self.mask[:, :, :rows].astype(np.float64)
        top = score.max(axis=3, keepdims=True, initial=-1e30)
        weight = np.exp(score - top)
        total = weight.sum(axis=3, keepdims=True)
        if self.sinks is not None:
            total = total + np.exp(self.sinks.reshape(1, -1, 1, 1) - top)
        return np.divide(weight @ v, total, out=np.zeros_like(weight @ v), where=total > 0).transpose(0, 2, 1, 3)

    def check(self, n_threads: int = 1, atol: float = 2e-5) -> None:
        assert self.taken()
        np.testing.assert_allclose(self.compute(n_threads), self.expected(), atol=atol)


def causal(rows: int, cells: int, window: int = 1 << 30) -> Array:
    """The last ``rows`` of a sequence that has all ``cells``."""
    row, cell = np.arange(cells - rows, cells)[:, None], np.arange(cells)[None, :]
    return np.where((cell <= row) & (cell > row - window), 0, -np.inf)[None]


def scattered(rows: int, cells: int) -> Array:
    """Sequences of a row each, whose cells lie between one another's."""
    owner = random.integers(0, rows + 1, cells)
    return np.where(owner == np.arange(rows)[:, None], 0, -np.inf)[None]


@pytest.mark.parametrize("n_threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (4, 1), (8, 8), (14, 2)])
def test_rows_of_many_sequences(heads: int, kv_heads: int, n_threads: int) -> None:
    for rows, cells in ((1, 300), (16, 1000), (5, 64)):
        Attention(scattered(rows, cells), heads=heads, kv_heads=kv_heads).check(n_threads)


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("window", [1 << 30, 20])
def test_a_prompt(window: int, n_threads: int) -> None:
    for rows, cells in ((1, 1), (7, 7), (70, 70), (40, 333), (130, 512)):
        Attention(causal(rows, cells, window), heads=6, kv_heads=2).check(n_threads)


@pytest.mark.parametrize(("key_size", "value_size"), [(16, 16), (64, 64), (80, 48), (128, 128), (192, 128), (256, 512)])
def test_sizes_of_heads(key_size: int, value_size: int) -> None:
    mask = np.concatenate([causal(5, 200), scattered(5, 200)], axis=1)
    Attention(mask, heads=8, kv_heads=2, key_size=key_size, value_size=value_size).check(2)


def test_more_heads_share_a_head_of_keys_than_are_taken_together() -> None:
    Attention(causal(3, 90), heads=150, kv_heads=1).check(2)


def test_streams_have_cells_and_masks_of_their_own() -> None:
    mask = np.concatenate([causal(4, 100), scattered(4, 100), causal(4, 100, 9)])
    Attention(mask, heads=4, kv_heads=2).check(2)


def test_sinks_take_part_of_the_weight() -> None:
    Attention(causal(6, 100), heads=4, kv_heads=2, sinks=True).check()


def test_a_mask_may_add_to_scores() -> None:
    """Also to those of one row, where a mask that only hides is not looked at again."""
    for rows in (1, 9):
        mask = causal(rows, 130) + np.linspace(-3, 2, 130).astype(np.float16)
        Attention(mask, heads=4, kv_heads=2).check()


def test_a_row_that_sees_nothing_gives_zeros() -> None:
    mask = scattered(6, 200)
    mask[0, 2] = -np.inf
    attention = Attention(mask, heads=4, kv_heads=2)
    attention.check()
    assert not attention.result[0, 2].any()


def test_what_one_sequence_sees_does_not_reach_another() -> None:
    attention = Attention(scattered(8, 400), heads=4, kv_heads=2)
    attention.v[0, :, attention.mask[0, 0, 3] == 0] = np.nan
    assert attention.taken()
    result = attention.compute(1)
    assert np.isnan(result[0, 3]).all()
    assert np.isfinite(np.delete(result[0], 3, axis=0)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_key_that_is_not_finite_shows(wrong: float, rows: int) -> None:
    attention = Attention(causal(rows, 200), heads=4, kv_heads=2)
    attention.k[0, :, 5, 3] = wrong
    assert attention.taken()
    assert np.isnan(attention.compute(1)).all()


def test_values_may_be_part_of_the_keys() -> None:
    attention = Attention(causal(5, 90), heads=6, kv_heads=1, key_size=64, value_size=32)
    attention.v = attention.k[..., :32]
    view = tensor(attention.v)
    attention.node.src[2].contents = view
    attention.check()


def test_a_row_does_not_depend_on_the_others_nor_on_the_threads() -> None:
    """Bit for bit, as long as its own cells come in the same order."""
    several = Attention(scattered(16, 900), heads=6, kv_heads=2)
    assert several.taken()
    together = several.compute(1).copy()
    assert (several.compute(5) == together).all()
    own = several.mask[0, 0, 4] == 0
    alone = Attention(np.zeros((1, 1, int(own.sum()))), heads=6, kv_heads=2)
    alone.q[:], alone.k[:], alone.v[:] = several.q[:, :, 4:5], several.k[:, :, own], several.v[:, :, own]
    assert alone.taken()
    assert (alone.compute(1)[0, 0] == together[0, 4]).all()


@pytest.mark.parametrize(("keys", "values"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("key_size", "value_size"), [(32, 32), (64, 64), (96, 128), (256, 256)])
def test_caches_of_q8_0(key_size: int, value_size: int, keys: bool, values: bool, instruction_set: int) -> None:
    """Dequantised values are rounded to halves; ggml quantises the queries."""
    masks = [causal(1, 200), causal(40, 333), causal(70, 70, 20), scattered(16, 500)]
    for mask in [*masks, np.concatenate([causal(4, 100), scattered(4, 100)])]:
        attention = Attention(mask, heads=6, kv_heads=2, key_size=key_size, value_size=value_size)
        attention.quantise(keys, values)
        if instruction_set == 0:
            assert not attention.taken()
        else:
            attention.check(3, atol=2e-3)


def test_a_row_of_a_q8_0_cache_does_not_depend_on_the_others_nor_on_the_threads(instruction_set: int) -> None:
    several = Attention(scattered(16, 900), heads=6, kv_heads=2)
    own = several.mask[0, 0, 4] == 0
    alone = Attention(np.zeros((1, 1, int(own.sum()))), heads=6, kv_heads=2)
    alone.q[:], alone.k, alone.v = several.q[:, :, 4:5], several.k[:, :, own], several.v[:, :, own]
    several.quantise()
    alone.quantise()
    assert several.taken() == alone.taken() == (instruction_set > 0)
    if instruction_set > 0:
        together = several.compute(1).copy()
        assert (several.compute(5) == together).all()
        assert (alone.compute(1)[0, 0] == together[0, 4]).all()


def test_heads_of_q8_0_that_are_too_large_stay_as_they_are() -> None:
    attention = Attention(causal(2, 64), heads=4, kv_heads=2, key_size=288, value_size=288)
    attention.quantise()
    assert not attention.taken()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_mask(data: st.DataObject) -> None:
    rows, cells = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    chance = data.draw(st.sampled_from([0.02, 0.5, 0.98]))
    mask = np.where(random.random((1, rows, cells)) < chance, 0, -np.inf)
    if data.draw(st.booleans()):
        mask = np.minimum(mask, causal(min(rows, cells), cells)[:, :1] if rows > cells else causal(rows, cells))
    group = data.draw(st.integers(1, 5))
    Attention(mask, heads=2 * group, kv_heads=2).check(data.draw(st.integers(1, 6)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: node.op_params.__setitem__(1, 8.0),
        lambda node: node.op_params.__setitem__(2, 50.0),
        lambda node: setattr(node.src[1].contents, "type", 8),
        lambda node: setattr(node.src[0].contents, "type", F16),
        lambda node: node.src[1].contents.ne.__setitem__(0, 40),
        lambda node: node.src[2].contents.nb.__setitem__(0, 64),
        lambda node: node.src[1].contents.ne.__setitem__(1, (1 << 17) + 1),
        lambda node: node.src.__setitem__(3, None),
        lambda node: node.src[3].contents.ne.__setitem__(0, 63),
        lambda node: node.src[3].contents.ne.__setitem__(1, 1),
        lambda node: node.src[3].contents.ne.__setitem__(2, 4),
        lambda node: node.src[1].contents.ne.__setitem__(3, 2),
        lambda node: setattr(node, "op", FLASH_ATTN_EXT + 1),
    ],
)
def test_what_it_does_not_know_stays_as_it_is(spoil: Any) -> None:
    attention = Attention(causal(2, 64), heads=4, kv_heads=2)
    spoil(attention.node)
    before = bytes(attention.node)
    assert not attention.taken()
    assert bytes(attention.node) == before
