"""Attention: llamafast's operation against ggml's own, over caches of halves and of Q8_0.

    python -m benchmarks.micro.attention [--rounds N] [--types f16,q8_0] [--cells N] [--size N]
        [--heads N] [--kv-heads N]

Both operations in turn on one thread, whose CPU time counts, over the same random cache: a row of one sequence, rows of
several sequences whose cells lie between one another's, and the last rows of a prompt. Microseconds, medians.
"""

from __future__ import annotations

import argparse
import time
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p, memmove

import numpy as np

from benchmarks.ggml_products import CONTEXT_BYTES, TYPES, Array, InitParams, lib, quantised
from llamafast.bench.figures import median

lib.ggml_flash_attn_ext.restype = c_void_p
lib.ggml_flash_attn_ext.argtypes = [c_void_p] * 5 + [c_float] * 3
lib.ggml_new_tensor_4d.restype = c_void_p
lib.ggml_new_tensor_4d.argtypes = [c_void_p, c_int, c_int64, c_int64, c_int64, c_int64]
lib.ggml_permute.restype = c_void_p
lib.ggml_permute.argtypes = [c_void_p, c_void_p] + [c_int] * 4
lib.attention_take.restype = c_bool
lib.attention_take.argtypes = [c_void_p]

STREAMS = (1, 4, 16)
PROMPT_ROWS = 64


class Attention:
    """One operation of ggml's. mask: (rows, cells), what is added to scores."""

    def __init__(self, kind: str, mask: Array, *, size: int, heads: int, kv_heads: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._backend = lib.ggml_backend_cpu_init()
        lib.ggml_backend_cpu_set_n_threads(self._backend, 1)
        self._context = lib.ggml_init(InitParams(CONTEXT_BYTES, None, True))
        self._graph = lib.ggml_new_graph(self._context)
        rows, cells = mask.shape
        self._filled: list[tuple[int, bytes]] = []
        q = self._tensor("f32", size, heads, rows)
        k, v = (self._tensor(kind, size, kv_heads, cells) for _ in range(2))
        hidden = self._hold("f16", mask.astype(np.float16).tobytes(), cells, rows, 1)
        self.node = lib.ggml_flash_attn_ext(self._context, q, k, v, hidden, size**-0.5, 0, 0)
        lib.ggml_build_forward_expand(self._graph, self.node)
        self._buffer = lib.ggml_backend_alloc_ctx_tensors(self._context, self._backend)
        for tensor, data in self._filled:
            memmove(lib.ggml_get_data(tensor), data, len(data))

    def _hold(self, kind: str, data: bytes, *shape: int) -> int:
        made = int(lib.ggml_new_tensor_4d(self._context, TYPES[kind], *shape, 1))
        self._filled.append((made, data))
        return made

    def _tensor(self, kind: str, size: int, heads: int, rows: int) -> int:
        """Random values, the heads of a row side by side, as llama.cpp has them."""
        values = self._random.standard_normal((rows * heads, size), np.float32)
        made = self._hold(kind, quantised(kind, values), size, heads, rows)
        return int(lib.ggml_permute(self._context, made, 0, 2, 1, 3))

    def compute(self) -> float:
        """Seconds of CPU."""
        begin = time.thread_time()
        if lib.ggml_backend_graph_compute(self._backend, self._graph) != 0:
            raise RuntimeError("ggml could not compute the graph")
        return time.thread_time() - begin

    def close(self) -> None:
        lib.ggml_backend_buffer_free(self._buffer)
        lib.ggml_free(self._context)
        lib.ggml_backend_free(self._backend)


def masks(cells: int) -> dict[str, Array]:
    """By what is decoded: which of ``cells`` cells a row sees. Sequences have as many each as one alone."""
    made = {}
    for streams in STREAMS:
        owner = np.arange(cells * streams) // 16 % streams
        made[f"{streams} rows"] = np.where(owner == np.arange(streams)[:, None], 0, -np.inf)
    row = np.arange(cells - PROMPT_ROWS, cells)[:, None]
    made[f"prompt of {PROMPT_ROWS}"] = np.where(np.arange(cells) <= row, 0, -np.inf)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--types", default="f16,q8_0")
    parser.add_argument("--cells", type=int, default=1024, help="of each sequence")
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    args = parser.parse_args()
    print(f"{'cache':>6} {'batch':>12} {'ggml µs':>9} {'ours µs':>9} {'ratio':>6}")
    for kind in args.types.split(","):
        for batch, mask in masks(args.cells).items():
            shape = {"size": args.size, "heads": args.heads, "kv_heads": args.kv_heads, "seed": 1}
            ggml, ours = (Attention(kind, mask, **shape) for _ in range(2))
            if not lib.attention_take(ours.node):
                raise SystemExit(f"{kind}: not taken")
            pairs = [(ggml.compute(), ours.compute()) for _ in range(args.rounds + 1)][1:]
            a, b = (1e6 * median([pair[i] for pair in pairs]) for i in range(2))
            print(f"{kind:>6} {batch:>12} {a:9.0f} {b:9.0f} {median([x / y for x, y in pairs]):6.2f}", flush=True)
            ggml.close()
            ours.close()


if __name__ == "__main__":
    main()
