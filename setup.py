"""Builds the compiled core. Everything else about the package is in pyproject.toml and MANIFEST.in.

LLAMAFAST_BUILD chooses the kind: ``release`` (default), ``debug`` (bounds checks, counts of what is alive, -O0 -g) or
``asan`` (debug with the address sanitizer). With LLAMAFAST_TESTS=1 the command ``build_ext`` builds, in place of the
core, what tests look inside it with; no other command does.
"""

from __future__ import annotations

import os
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = "llamafast/_core"
BUILT_WITH = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["build-system"]["requires"]
(LLAMA_CPP_PYTHON,) = (pin.split("==")[1] for pin in BUILT_WITH if pin.startswith("llama-cpp-python=="))
# module: further sources, in c/
MODULES: dict[str, list[str]] = {
    "leaks": [],
    "llama_log": [],
    "simd": [],
    "vocab": ["tokenize.cpp"],
    "gguf": [],
    "patterns": ["patterns.cpp"],
    "devices": [],
    "progress": [],
    "model": ["weight_layouts.c"],
    "graph": ["adapters.c", "attention.c", "products.c", "zero_pages.c"],
    "adapters": [],
    "adapter_graph": [],
    "team": [],
    "context": [],
    "penalties": [],
    "dry": [],
    "draw": ["logits.c"],
    "stages": ["logits.c", "stages.c"],
    "infill": [],
    "sampler": [],
    "logprobs": ["logits.c"],
    "text": [],
    "blocks": [],
    "budget": [],
    "states": [],
    "cost": [],
    "timing": [],
    "chains": [],
    "acceptance": [],
    "plan": [],
    "ledger": [],
    "answers": [],
    "proposer": [],
    "nextn": [],
    "draft_model": [],
    "calls": [],
    "lookup": [],
    "drafter": [],
    "outbox": [],
    "constraint": [],
    "constrained": [],
    "masks": [],
    "spans": [],
    "invocation": [],
    "tokens": [],
    "sequence": [],
    "live": [],
    "laws": [],
    "histograms": [],
    "glance": [],
    "rows": [],
    "media": [],
    "output": [],
    "step": [],
    "runner": [],
    "inputs": [],
    "embedder": [],
    "mtmd": [],
}

kind = os.environ.get("LLAMAFAST_BUILD", "release")
if kind not in ("release", "debug", "asan"):
    sys.exit(f"LLAMAFAST_BUILD={kind}: expected release, debug or asan")
release = kind == "release"


def llama_paths() -> tuple[Path, Path]:
    """The header and library folders of the installed llama-cpp-python, whose version must be the pinned one."""
    try:
        dist = distribution("llama-cpp-python")
    except PackageNotFoundError:
        sys.exit(f"building llamafast needs llama-cpp-python=={LLAMA_CPP_PYTHON} in this environment")
    if dist.version != LLAMA_CPP_PYTHON:
        sys.exit(f"building llamafast needs llama-cpp-python=={LLAMA_CPP_PYTHON}, found {dist.version}")
    include = Path(str(dist.locate_file("include")))
    lib = Path(str(dist.locate_file("llama_cpp/lib")))
    for needed in (include / "llama.h", lib / "libllama.so.0" if sys.platform == "linux" else lib):
        if not needed.exists():
            sys.exit(f"llama-cpp-python is installed without {needed.name}: {needed} is missing")
    return include.resolve(), lib.resolve()


class BuildCore(build_ext):
    """Compiles what ``core`` only lists: a source distribution needs no C of Cython's, and no llama.cpp."""

    def finalize_options(self) -> None:
        if os.environ.get("LLAMAFAST_TESTS") == "1" and "build_ext" in self.distribution.commands:
            self.distribution.ext_modules = [extension("tests.core.inside", ["tests/core/inside.pyx"])]
        super().finalize_options()
        # an editable build is one; run() forgets it
        self.beside_sources = bool(self.inplace)

    def build_extensions(self) -> None:
        include, lib = llama_paths()
        origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        rpath = [f"{origin}/../../llama_cpp/lib"]
        if self.beside_sources:
            # which do not lie beside llama_cpp
            rpath.append(str(lib))
        compiled = cythonize(
            self.extensions,
            force=bool(self.force),
            build_dir="build/generated",
            compiler_directives={
                "language_level": 3,
                "boundscheck": not release,
                "wraparound": False,
                "initializedcheck": not release,
                "cdivision": True,
                "embedsignature": False,
                "binding": False,
            },
        )
        for extension, in_c in zip(self.extensions, compiled, strict=True):
            extension.sources = in_c.sources
            extension.include_dirs.append(str(include))
            extension.library_dirs.append(str(lib))
            extension.runtime_library_dirs += rpath
        super().build_extensions()


def extension(module: str, sources: list[str]) -> Extension:
    compile_args = ["-O3", "-g0", "-fno-math-errno"] if release else ["-O0", "-g", "-fno-omit-frame-pointer"]
    link_args = []
    if kind == "asan":
        compile_args.append("-fsanitize=address")
        link_args.append("-fsanitize=address")
    return Extension(
        module,
        sources,
        include_dirs=[f"{CORE}/c"],
        libraries=["llama", "ggml", "ggml-base", *(["mtmd"] if module.endswith(".mtmd") else [])],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[("LLAMAFAST_DEBUG", "0" if release else "1")],
        language="c++" if module.endswith((".mtmd", ".patterns")) else "c",
        depends=[str(header) for header in sorted(Path(CORE).rglob("*.h"))],
    )


def core() -> list[Extension]:
    return [
        extension(f"llamafast._core.{name}", [f"{CORE}/{name}.pyx", *(f"{CORE}/c/{source}" for source in sources)])
        for name, sources in MODULES.items()
    ]


setup(ext_modules=core(), cmdclass={"build_ext": BuildCore})
