"""llama.cpp's own sampler chain, through ctypes on the library the compiled core is linked with: our oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
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
        "init_typical": (c_void_p, [c_float, c_size_t]),
        "init_top_n_sigma": (c_void_p, [c_float]),
        "init_xtc": (c_void_p, [c_float, c_float, c_size_t, c_uint32]),
        "init_temp_ext": (c_void_p, [c_float, c_float, c_float]),
        "init_mirostat": (c_void_p, [c_int32, c_uint32, c_float, c_float, c_int32]),
        "init_mirostat_v2": (c_void_p, [c_uint32, c_float, c_float]),
        "init_dry": (c_void_p, [c_void_p, c_float, c_float, c_int32, c_int32, POINTER(c_char_p), c_size_t]),
        "init_infill": (c_void_p, [c_void_p]),
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


ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")


class Chain:
    """logit_bias, then ``samplers`` in their order, with dist at the end when it has a seed.

    A stage whose parameter switches it off is left out, as llama-server and llama-cpp-python do; greedy ends one
    whose temperature is 0. mirostat takes the place of what truncates. DRY and infill need a llama_vocab, DRY breakers'
    texts too.
    """

    def __init__(
        self,
        n_vocab: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        top_n_sigma: float = 0.0,
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        dynatemp_range: float = 0.0,
        dynatemp_exponent: float = 1.0,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = 64,
        dry_breakers: Sequence[bytes] = (),
        vocab: int = 0,
        logit_bias: Sequence[tuple[int, float]] = (),
        seed: int | None = None,
        samplers: Sequence[str] = ORDER,
    ) -> None:
        self._chain = c_void_p(_lib.llama_sampler_chain_init(_ChainParams(True)))
        if logit_bias:
            biases = (_LogitBias * len(logit_bias))(*(_LogitBias(*pair) for pair in logit_bias))
            self._add(_lib.llama_sampler_init_logit_bias(n_vocab, len(logit_bias), biases))
        penalized = (repetition_penalty, presence_penalty, frequency_penalty) != (1, 0, 0)
        breakers = (c_char_p * len(dry_breakers))(*dry_breakers)
        stages: dict[str, tuple[bool, Callable[[], int]]] = {
            "penalties": (
                penalized,
                lambda: _lib.llama_sampler_init_penalties(
                    n_vocab, penalty_last_n, repetition_penalty, frequency_penalty, presence_penalty
                ),
            ),
            "dry": (
                dry_multiplier != 0,
                lambda: _lib.llama_sampler_init_dry(
                    vocab, dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, breakers, len(breakers)
                ),
            ),
            "top_n_sigma": (top_n_sigma > 0, lambda: _lib.llama_sampler_init_top_n_sigma(top_n_sigma)),
            "top_k": (top_k > 0, lambda: _lib.llama_sampler_init_top_k(top_k)),
            "typ_p": (typical_p < 1, lambda: _lib.llama_sampler_init_typical(typical_p, 1)),
            "top_p": (top_p < 1, lambda: _lib.llama_sampler_init_top_p(top_p, 1)),
            "min_p": (min_p > 0, lambda: _lib.llama_sampler_init_min_p(min_p, 1)),
            "xtc": (
                xtc_probability > 0,
                lambda: _lib.llama_sampler_init_xtc(xtc_probability, xtc_threshold, 1, seed or 0),
            ),
            "infill": (True, lambda: _lib.llama_sampler_init_infill(vocab)),
            "temperature": (
                True,
                lambda: _lib.llama_sampler_init_temp_ext(temperature, dynatemp_range, dynatemp_exponent),
            ),
        }
        if mirostat:
            samplers = [name for name in samplers if name in ("penalties", "dry", "temperature")]
        if temperature <= 0 and not dynatemp_range and set(samplers) == set(ORDER):
            samplers = [name for name in samplers if name in ("penalties", "dry")]
        for name in samplers:
            wanted, make = stages[name]
            if wanted:
                self._add(make())
        if mirostat == 1:
            self._add(_lib.llama_sampler_init_mirostat(n_vocab, seed or 0, mirostat_tau, mirostat_eta, 100))
        elif mirostat == 2:
            self._add(_lib.llama_sampler_init_mirostat_v2(seed or 0, mirostat_tau, mirostat_eta))
        elif temperature <= 0 and "temperature" not in samplers:
            self._add(_lib.llama_sampler_init_greedy())
        elif seed is not None:
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
