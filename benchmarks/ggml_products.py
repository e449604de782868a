"""Products of ggml's, computed by ggml itself or by llamafast's operation in its place.

``products_take`` and its kind are C functions of the compiled core, and through the same library ggml's are reached.
"""

from __future__ import annotations

from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
    memmove,
)
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# enum ggml_type
TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "bf16": 30, "mxfp4": 39, "nvfp4": 40,
}  # fmt: skip
USAGE_WEIGHTS = 1
PAGE = 64
CONTEXT_BYTES = 1 << 22

lib = CDLL(import_module("llamafast._core.graph").__file__)


class InitParams(Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _declare(name: str, result: Any, *arguments: Any) -> None:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments


_declare("ggml_init", c_void_p, InitParams)
_declare("ggml_free", None, c_void_p)
_declare("ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
_declare("ggml_new_tensor_3d", c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64)
_declare("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
_declare("ggml_mul_mat_id", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
_declare("ggml_new_graph", c_void_p, c_void_p)
_declare("ggml_build_forward_expand", None, c_void_p, c_void_p)
_declare("ggml_graph_n_nodes", c_int, c_void_p)
_declare("ggml_graph_node", c_void_p, c_void_p, c_int)
_declare("ggml_row_size", c_size_t, c_int, c_int64)
_declare("ggml_get_data", c_void_p, c_void_p)
_declare(
    "ggml_quantize_chunk", c_size_t, c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)
)
_declare("ggml_backend_cpu_init", c_void_p)
_declare("ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)
_declare("ggml_backend_free", None, c_void_p)
_declare("ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
_declare("ggml_backend_cpu_buffer_from_ptr", c_void_p, c_void_p, c_size_t)
_declare("ggml_backend_buffer_set_usage", None, c_void_p, c_int)
_declare("ggml_backend_buffer_free", None, c_void_p)
_declare("ggml_backend_alloc_ctx_tensors", c_void_p, c_void_p, c_void_p)
_declare("ggml_backend_tensor_alloc", c_int, c_void_p, c_void_p, c_void_p)
_declare("products_use", c_int, c_int)
_declare("products_new", c_void_p)
_declare("products_free", None, c_void_p)
_declare("products_begin", None, c_void_p)
_declare("products_take", c_bool, c_void_p, c_void_p)
libc = CDLL(None)
libc.posix_memalign.argtypes = [POINTER(c_void_p), c_size_t, c_size_t]
libc.free.argtypes = [c_void_p]


def quantised(type_name: str, weights: Array) -> bytes:
    """Rows of floats as ggml stores them; F32, F16 and BF16 are types like the others."""
    weights = np.ascontiguousarray(weights, np.float32)
    n_rows, n_columns = weights.reshape(-1, weights.shape[-1]).shape
    data = bytes(n_rows * lib.ggml_row_size(TYPES[type_name], n_columns))
    lib.ggml_quantize_chunk(
        TYPES[type_name], weights.ctypes.data_as(POINTER(c_float)), c_char_p(data), 0, n_rows, n_columns, None
    )
    return data


class Products:
    """A graph of the products of several matrices of weights with the same rows of activations.

    ``weights``: a (type, number of rows, data) each, all of ``x.shape[-1]`` columns. ``x`` (rows, columns). With
    ``experts`` there is one more axis in front of every matrix's rows and ``ids`` (tokens, slots) say which of them
    each slot of a token takes; ``x`` is (tokens, 1 or slots, columns) then.
    """

    def __init__(
        self, weights: list[tuple[str, int, bytes]], x: Array, *, experts: int = 0, ids: Array | None = None
    ) -> None:
        self._buffers: list[int] = []
        self._memory: list[c_void_p] = []
        self._backend = lib.ggml_backend_cpu_init()
        self._context = lib.ggml_init(InitParams(CONTEXT_BYTES, None, True))
        self._graph = lib.ggml_new_graph(self._context)
        self._products = lib.products_new()
        n_columns = x.shape[-1]
        rows = self._tensor("f32", *x.shape[::-1])
        chosen = None if ids is None else self._new(26, *ids.shape[::-1])
        self._outputs = []
        for type_name, n_rows, data in weights:
            shape = (n_columns, n_rows, experts) if experts else (n_columns, n_rows)
            matrix = self._tensor(type_name, *shape)
            self._hold(matrix, data)
            output = (
                lib.ggml_mul_mat(self._context, matrix, rows)
                if chosen is None
                else lib.ggml_mul_mat_id(self._context, matrix, rows, chosen)
            )
            lib.ggml_build_forward_expand(self._graph, output)
            shape = (*x.shape[:-1], n_rows) if ids is None else (*ids.shape, n_rows)
            self._outputs.append((output, shape))
        self._buffers.append(lib.ggml_backend_alloc_ctx_tensors(self._context, self._backend))
        self._fill(rows, np.ascontiguousarray(x, np.float32))
        if ids is not None:
            self._fill(chosen, np.ascontiguousarray(ids, np.int32))
        nodes = range(lib.ggml_graph_n_nodes(self._graph))
        self._nodes = [lib.ggml_graph_node(self._graph, i) for i in nodes]

    def _tensor(self, type_name: str, *shape: int) -> int:
        return self._new(TYPES[type_name], *shape)

    def _new(self, type_number: int, *shape: int) -> int:
        new = lib.ggml_new_tensor_3d if len(shape) == 3 else lib.ggml_new_tensor_2d
        return int(new(self._context, type_number, *shape))

    def _hold(self, matrix: int, data: bytes) -> None:
        """Memory that ends with the matrix: what reads beyond is seen by an address sanitizer."""
        memory = c_void_p()
        if libc.posix_memalign(byref(memory), PAGE, len(data)) != 0:
            raise MemoryError
        self._memory.append(memory)
        memmove(memory, data, len(data))
        buffer = lib.ggml_backend_cpu_buffer_from_ptr(memory, len(data))
        lib.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS)
        lib.ggml_backend_tensor_alloc(buffer, matrix, memory)
        self._buffers.append(buffer)

    @staticmethod
    def _fill(tensor: int | None, values: Array) -> None:
        memmove(lib.ggml_get_data(tensor), values.ctypes.data, values.nbytes)

    def take(self) -> list[bool]:
        """Ask for every node whether it becomes llamafast's, as the callback does before each computation."""
        lib.products_begin(self._products)
        return [bool(lib.products_take(self._products, node)) for node in self._nodes]

    def compute(self, n_threads: int = 1) -> None:
        lib.ggml_backend_cpu_set_n_threads(self._backend, n_threads)
        if lib.ggml_backend_graph_compute(self._backend, self._graph) != 0:
            raise RuntimeError("ggml could not compute the graph")

    def results(self) -> list[Array]:
        """A copy of each product, (rows, rows of weights), or (tokens, slots, rows of weights)."""
        copies = []
        for output, shape in self._outputs:
            result = np.empty(shape, np.float32)
            memmove(result.ctypes.data, lib.ggml_get_data(output), result.nbytes)
            copies.append(result)
        return copies

    def __del__(self) -> None:
        for buffer in self._buffers:
            lib.ggml_backend_buffer_free(buffer)
        lib.ggml_free(self._context)
        lib.ggml_backend_free(self._backend)
        lib.products_free(self._products)
        for memory in self._memory:
            libc.free(memory)
