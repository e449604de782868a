"""Products with weights: llamafast's operation against ggml's own, and both against what a core can do at most.

    python -m benchmarks.micro.products [--rounds N] [--types q4_1,…] [--rows 1,8,…] [--columns N] [--megabytes N]

Square matrices, as many of them as fill ``--megabytes``, each multiplied once a round with rows of activations that all
of them share; both operations in turn on one thread, whose CPU time counts. Quantising is included. GOPS: two a
multiply-add. The fractions are of the products of bytes (with AVX2: of such bytes as a type's values are), or of the
reading from memory, that the same core did in the same run (roofline.c, compiled for it with ``cc``). Medians.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from ctypes import CDLL, c_double, c_int, c_size_t, c_void_p
from pathlib import Path

import numpy as np

from benchmarks.ggml_products import Products, lib, quantised
from llamafast.bench.figures import median

ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "nvfp4")
QUANTISED = (*LEGACY, "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")
FLOATS = ("f16", "bf16", "f32")
# Their values do not fit into five bits.
WIDE = ("q8_0", "iq4_nl", "q2_k", "q3_k", "q6_k", "iq4_xs", *FLOATS)
PEAK_SECONDS = 0.2


class Roofline:
    """What one core can do a second: ``peak`` products of signed bytes, ``narrow_peak`` of bytes up to 31 with these,
    and ``bandwidth`` bytes read of ``megabytes``."""

    def __init__(self, megabytes: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "roofline.so"
            source = Path(__file__).with_name("roofline.c")
            subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", library, source], check=True)
            roofline = CDLL(str(library))
        roofline.peak.restype = roofline.bandwidth.restype = c_double
        roofline.peak.argtypes, roofline.bandwidth.argtypes = [c_double, c_int], [c_void_p, c_size_t, c_double]
        memory = np.ones(megabytes << 17, np.int64)
        self.peak, self.narrow_peak = (max(roofline.peak(PEAK_SECONDS, n) for _ in range(3)) for n in (False, True))
        self.bandwidth = max(roofline.bandwidth(memory.ctypes.data, memory.nbytes, PEAK_SECONDS) for _ in range(3))


def measure(type_name: str, rows: int, columns: int, megabytes: int, rounds: int) -> tuple[float, float, float, float]:
    """Operations a second of ggml's and of ours, their ratio, and the bytes of a weight; medians of rounds."""
    random = np.random.default_rng(1)
    data = quantised(type_name, random.standard_normal((columns, columns), np.float32))
    n_matrices = max(1, (megabytes << 20) // len(data))
    x = random.standard_normal((rows, columns), np.float32)
    sides = {True: Products([(type_name, columns, data)] * n_matrices, x)}
    sides[False] = Products([(type_name, columns, data)] * n_matrices, x)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        for ours in (True, False) if number % 2 else (False, True):
            if ours and not all(sides[ours].take()):
                raise SystemExit(f"{type_name}: not taken")
            begin = time.thread_time()
            sides[ours].compute()
            if number:
                seconds[ours].append(time.thread_time() - begin)
    work = 2 * rows * columns**2 * n_matrices
    ratio = median([a / b for a, b in zip(seconds[False], seconds[True], strict=True)])
    return work / median(seconds[False]), work / median(seconds[True]), ratio, len(data) / columns**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default=",".join([*QUANTISED, *FLOATS]))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--megabytes", type=int, default=80)
    parser.add_argument("--level", type=int, default=99, help="the best instruction set allowed: 1 is AVX2")
    args = parser.parse_args()
    level = lib.products_use(args.level)
    line = Roofline(args.megabytes)
    print(
        f"level {level}; peak {line.peak / 1e9:.0f} GOPS, of narrow bytes {line.narrow_peak / 1e9:.0f}, "
        f"reading {line.bandwidth / 1e9:.1f} GB/s"
    )
    print(f"{'type':>7} {'rows':>4}  {'ggml':>6} {'ours':>6}  {'ratio':>5}  {'of peak':>7} {'of reading':>10}")
    for type_name in args.types.split(","):
        peak = line.peak if type_name in WIDE else line.narrow_peak
        for rows in map(int, args.rows.split(",")):
            ggml, ours, ratio, bytes_each = measure(type_name, rows, args.columns, args.megabytes, args.rounds)
            print(
                f"{type_name:>7} {rows:>4}  {ggml / 1e9:6.1f} {ours / 1e9:6.1f}  {ratio:5.2f}  "
                f"{ours / peak:7.2f} {ours / (2 * rows) * bytes_each / line.bandwidth:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
