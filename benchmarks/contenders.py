"""The servers that are compared, as their own users start them: the same GGUF, threads, context, batch and cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.server import ROOT, Server, free_port, started
from llamafast._core.model import layouts_work

CACHE = Path(os.environ.get("LLAMAFAST_BENCH_CACHE", ROOT / ".cache" / "benchmarks"))
# what an example server of the source distribution must find elsewhere than on PyPI: our own copy of the library
OWN_PACKAGE = "llama-cpp-python"
# texts that llama.cpp takes for the end of a generation, whatever the GGUF says
END_TEXTS = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<end_of_turn>"}


class Unavailable(Exception):
    """A server that cannot be had here, and what would help."""


class Contender(ABC):
    """``name`` on the command line and in reports, ``health`` the path that answers once it is ready."""

    name: str
    health: str

    @abstractmethod
    def about(self) -> str:
        """The version for the report. Raises Unavailable."""

    @abstractmethod
    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        """How it is started; ``settings`` are llama_context_params by llama.h's names, ``mmproj`` is a projector."""

    def fields(self, model: str) -> dict[str, Any]:
        """What must be added to a request that generates for it to mean the same as to the others."""
        return {}

    @contextmanager
    def serving(
        self, model: str, settings: dict[str, Any], cores: set[int] | None, mmproj: Path | None = None
    ) -> Iterator[Server]:
        """The running server. Raises ServerFailure."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="llamafast-benchmark-") as folder:
            command = self.command(model, settings, port, Path(folder), mmproj)
            with started(command, port, self.health, Path(folder), cores, {}) as server:
                yield server


def seed_config(model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None, **more: Any) -> str:
    """A config file in the format that llamafast and the example server share; its path."""
    section = {"path": model, "alias": "benchmark", **settings, **more}
    if mmproj is not None:
        section["mtmd"] = {"mmproj_path": str(mmproj)}
    section["threads"] = section.pop("n_threads")
    section["threads_batch"] = section.pop("n_threads_batch")
    path = folder / "cfg.json"
    path.write_bytes(msgspec.json.encode({"server": {"host": "127.0.0.1", "port": port}, "model": section}))
    return str(path)


class Llamafast(Contender):
    name, health = "llamafast", "/healthz"

    def about(self) -> str:
        return version("llamafast")

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        return [sys.executable, "-m", "llamafast", "serve", seed_config(model, settings, port, folder, mmproj)]


class LlamaServer(Contender):
    """llama.cpp's own server: the binary that LLAMA_SERVER names, or the one ``make llama-server`` built."""

    name, health = "llama-server", "/health"

    def binary(self) -> str:
        built = CACHE / "llama-server" / "bin" / "llama-server"
        named = os.environ.get("LLAMA_SERVER") or (str(built) if built.exists() else shutil.which("llama-server"))
        if named is None or not Path(named).is_file():
            raise Unavailable("no llama-server: set LLAMA_SERVER to a binary, or build one with `make llama-server`")
        return named

    def about(self) -> str:
        told = subprocess.run([self.binary(), "--version"], capture_output=True, text=True, check=False)
        return next(
            (line for line in (told.stderr + told.stdout).splitlines() if line.startswith("version")), "unknown"
        )

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        options = {
            "--model": model, "--alias": "benchmark", "--host": "127.0.0.1", "--port": port,
            "--ctx-size": settings["n_ctx"], "--batch-size": settings["n_batch"], "--ubatch-size": settings["n_ubatch"],
            "--parallel": settings["n_seq_max"], "--threads": settings["n_threads"],
            "--threads-batch": settings["n_threads_batch"],
        }  # fmt: skip
        unified = "--kv-unified" if settings["kv_unified"] else "--no-kv-unified"
        embeds = ["--embeddings"] if settings.get("embedding") else []
        # ggml's own layouts of weights, except where they crash
        plain = [] if layouts_work() else ["--no-repack"]
        if mmproj is not None:
            options["--mmproj"] = str(mmproj)
        words = [str(word) for pair in options.items() for word in pair]
        return [self.binary(), *words, *embeds, *plain, unified, "--no-ui"]


class Seed(Contender):
    """llama-cpp-python's example server, out of the source distribution of the version that is installed here."""

    name, health = "seed", "/healthz"

    def about(self) -> str:
        self.script()
        return f"examples/server of {OWN_PACKAGE} {version(OWN_PACKAGE)}"

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        script = self.script()
        # its own example configs switch this off: it copies the logits of every token otherwise
        config = seed_config(model, settings, port, folder, mmproj, store_logits=False)
        return [self.python(script), str(script), "-C", config]

    def fields(self, model: str) -> dict[str, Any]:
        """It knows no ``ignore_eos``: what ends a generation is biased away."""
        return {"logit_bias": dict.fromkeys(map(str, end_tokens(model)), -100.0)}

    def script(self) -> Path:
        """examples/server/server.py, downloaded from PyPI where it is not here yet. Raises Unavailable."""
        return sources() / "examples" / "server" / "server.py"

    def python(self, script: Path) -> str:
        """The interpreter of a virtual environment with what the script's header asks for, and our llama.cpp.

        Raises Unavailable.
        """
        folder = CACHE / f"seed-{version(OWN_PACKAGE)}"
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            needs = [need for need in script_requirements(script) if need != OWN_PACKAGE]
            done = subprocess.run([python, "-m", "pip", "install", "-q", *needs], capture_output=True, check=False)
            if done.returncode != 0:
                raise Unavailable(f"the seed's requirements: {done.stderr.decode(errors='replace')[-1000:]}")
            (folder / "complete").touch()
        # last in its path: its own packages win, the compiled library is the one everybody else here uses
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (site / "llama-cpp-python.pth").write_text(sysconfig.get_path("purelib"))
        return str(python)


CONTENDERS: dict[str, Contender] = {server.name: server for server in (Llamafast(), LlamaServer(), Seed())}


def sources() -> Path:
    """llama-cpp-python's source distribution, unpacked; downloaded once. Raises Unavailable."""
    release = version(OWN_PACKAGE)
    folder = CACHE / f"llama_cpp_python-{release}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", OWN_PACKAGE,
                       "-d", temporary, f"{OWN_PACKAGE}=={release}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, check=False)
            archives = list(Path(temporary).glob("*.tar.gz"))
            if not archives:
                raise Unavailable(f"{OWN_PACKAGE}'s source: {done.stderr.decode(errors='replace')[-1000:]}")
            with tarfile.open(archives[0]) as archive:
                archive.extractall(temporary, filter="data")
            (Path(temporary) / folder.name).rename(folder)
    return folder


def script_requirements(script: Path) -> list[str]:
    """The dependencies in an inline script header (PEP 723)."""
    block = re.search(r"^# /// script\n(.*?)^# ///$", script.read_text(), re.MULTILINE | re.DOTALL)
    if block is None:
        raise Unavailable(f"{script} has no script header")
    header = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in block[1].splitlines()))
    return list(header["dependencies"])


def end_tokens(model: str) -> list[int]:
    """The ids that end a generation of this GGUF."""
    from gguf import GGUFReader

    reader = GGUFReader(model)
    named = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    ids = {int(reader.fields[name].contents()) for name in named if name in reader.fields}
    texts = reader.fields["tokenizer.ggml.tokens"].contents()
    return sorted(ids | {index for index, text in enumerate(texts) if text in END_TEXTS})


if __name__ == "__main__":
    # `make llama-server` asks where llama.cpp's source is
    print(sources() / "vendor" / "llama.cpp")
