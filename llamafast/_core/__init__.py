"""What computes: Cython and C on llama.h, from rows to tokens and text. No policy, no JSON.

Importing this package checks that the llama-cpp-python it was compiled against is the one installed, and bounds the
spinning of ggml's OpenMP barriers before libgomp is loaded.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

LLAMA_CPP_PYTHON = "0.3.36"

try:
    _found = version("llama-cpp-python")
except PackageNotFoundError:
    _found = "none"
if _found != LLAMA_CPP_PYTHON:
    raise ImportError(
        f"llamafast was compiled against llama-cpp-python {LLAMA_CPP_PYTHON}, found {_found}: "
        f"install llama-cpp-python=={LLAMA_CPP_PYTHON}"
    )

# libgomp reads this once, when it is loaded. Its default, 300,000 spins, keeps a thread that waits at a barrier on its
# core for milliseconds, which takes the core away from whatever the barrier waits for as soon as the machine runs
# anything else. `python -m benchmarks threads` measures it; docs/benchmarks.md has the table this number is from.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
