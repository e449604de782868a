"""Tiny models in types that llama.cpp itself writes, by its own llama_model_quantize through llama-cpp-python's ctypes.

In a process of its own: llama-cpp-python takes llama.cpp's log for itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from recipes import tiny_gguf
from recipes.tiny_gguf_vocabulary import Vocabulary
from recipes.written import written

QUANTISE = """
import ctypes
import sys
import llama_cpp

kind, source, target = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind)
parameters.pure, parameters.nthread = True, 1
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))
"""


def build(kind: str) -> Path:
    """A model of one layer all of whose matrices are of the type of files that llama.h calls
    ``LLAMA_FTYPE_MOSTLY_kind``, or plain floats for ``ALL_F32``."""
    if kind == "ALL_F32":
        return written(
            tiny_gguf.CACHE / "tiny-llama-256.gguf",
            lambda path: tiny_gguf.llama(path, Vocabulary(512), layers=1, embd=256),
        )
    return written(tiny_gguf.CACHE / f"tiny-llama-256-{kind}.gguf", lambda path: _quantise(kind, path))


def _quantise(kind: str, path: Path) -> None:
    subprocess.run([sys.executable, "-c", QUANTISE, kind, build("ALL_F32"), path], capture_output=True, check=True)
