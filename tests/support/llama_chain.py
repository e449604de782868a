"""llama.cpp's own sampler chain, through ctypes on the library the compiled core is linked with: our oracle."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
    cast,
)
from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _TokenDataArray(Structure):
    _fields_ = (("data", c_void_p), ("size", c_size_t), ("selected", c_int64), ("sorted", c_bool))


class _ChainParams(Structure):
    _fields_ = (("no_perf", c_bool),)


class _LogitBias(Structure):
    _fields_ = (("token", c_int32), ("bias", c_float))


def _library() -> CDLL:
    lib = CDLL(str(distribution("llama-cpp-python").locate_file("llama_cpp/lib/libllama.so.0")))
    signatures = {
        "chain_init": (c_void_p, [_ChainParams]),
        "chain_add": (None, [c_void_p, c_void_p]),
        "init_greedy": (c_void_p, []),
        "init_dist": (c_void_p, [c_uint32]),
        "init_top_k": (c_void_p, [c_int32]),
        "init_top_p": (c_void_p, [c_float, c_size_t]),
        "init_min_p": (c_void_p, [c_float, c_size_t]),
        "init_temp": (c_void_p, [c_float]),
        "init_penalties": (c_void_p, [c_int32, c_int32, c_float, c_float, c_float]),
        "init_logit_bias": (c_void_p, [c_int32, c_int32, POINTER(_LogitBias)]),
        "accept": (None, [c_void_p, c_int32]),
        "apply": (None, [c_void_p, POINTER(_TokenDataArray)]),
        "free": (None, [c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"llama_sampler_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


_lib = _library()


class Chain:
    """logit_bias → penalties → top_k → top_p → min_p → temp (or greedy), with dist at the end when it has a seed.

    A stage whose parameter switches it off is left out, as llama-server and the seed program do.
    """

    def __init__(
        self,
        n_vocab: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        logit_bias: Sequence[tuple[int, float]] = (),
        seed: int | None = None,
    ) -> None:
        self._chain = c_void_p(_lib.llama_sampler_chain_init(_ChainParams(True)))
        if logit_bias:
            biases = (_LogitBias * len(logit_bias))(*(_LogitBias(*pair) for pair in logit_bias))
            self._add(_lib.llama_sampler_init_logit_bias(n_vocab, len(logit_bias), biases))
        if (repetition_penalty, presence_penalty, frequency_penalty) != (1, 0, 0):
            self._add(
                _lib.llama_sampler_init_penalties(
                    n_vocab, penalty_last_n, repetition_penalty, frequency_penalty, presence_penalty
                )
            )
        if temperature <= 0:
            self._add(_lib.llama_sampler_init_greedy())
            return
        if top_k > 0:
            self._add(_lib.llama_sampler_init_top_k(top_k))
        if top_p < 1:
            self._add(_lib.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0:
            self._add(_lib.llama_sampler_init_min_p(min_p, 1))
        self._add(_lib.llama_sampler_init_temp(temperature))
        if seed is not None:
            self._add(_lib.llama_sampler_init_dist(seed))

    def _add(self, stage: int) -> None:
        _lib.llama_sampler_chain_add(self._chain, stage)

    def __del__(self) -> None:
        _lib.llama_sampler_free(self._chain)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            _lib.llama_sampler_accept(self._chain, token)

    def apply(self, tokens: npt.NDArray[np.void]) -> _TokenDataArray:
        """Run the chain on an array of TOKEN_DATA, in place."""
        candidates = _TokenDataArray(tokens.ctypes.data, len(tokens), -1, False)
        _lib.llama_sampler_apply(self._chain, byref(candidates))
        return candidates

    def pick(self, row: Floats) -> int:
        """The token that the last stage (greedy, dist) selects."""
        tokens = token_data(row)
        candidates = self.apply(tokens)
        return int(_left(candidates)["id"][candidates.selected])

    def logits(self, row: Floats) -> Floats:
        """The logits that the stages leave, (n_vocab,): -inf for a token that they dropped."""
        tokens = token_data(row)
        left = _left(self.apply(tokens))
        result = np.full(len(row), -np.inf, np.float32)
        result[left["id"]] = left["logit"]
        return result

    def probabilities(self, row: Floats) -> npt.NDArray[np.float64]:
        """What a draw after the last stage would choose by, (n_vocab,)."""
        logits = self.logits(row).astype(np.float64)
        weights: npt.NDArray[np.float64] = np.exp(logits - logits.max())
        return weights / np.float64(weights.sum())


def token_data(row: Floats) -> npt.NDArray[np.void]:
    tokens = np.zeros(len(row), TOKEN_DATA)
    tokens["id"] = np.arange(len(row))
    tokens["logit"] = row
    return tokens


def _left(candidates: _TokenDataArray) -> npt.NDArray[np.void]:
    """A stage may have moved the candidates to memory of its own."""
    size = candidates.size * TOKEN_DATA.itemsize
    raw = np.ctypeslib.as_array(cast(candidates.data, POINTER(c_float)), (size // 4,))
    return raw.view(TOKEN_DATA).copy()
