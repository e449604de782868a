"""What a model and its contexts take, told before they take it, and how long a context fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.engines import loaded

from llamafast import cli
from llamafast.config import Config, ModelConfig
from llamafast.engine import fit
from llamafast.engine.allocated import allocated, in_one_line, read
from llamafast.engine.fit import LEAST, Room, Trial, with_context
from llamafast.engine.load import create_contexts, load_engine
from llamafast.engine.look import look
from llamafast.engine.threads import physical_cores, too_many_threads
from llamafast.errors import ConfigError, ModelLoadError

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("tiny-llama", {}),
    ("tiny-llama", {"type_k": "f32", "type_v": "bf16", "flash_attn": True}),
    ("tiny-llama", {"embedding": True}),
    ("tiny-gemma3-swa", {}),
    ("tiny-qwen35", {}),
    ("tiny-mamba", {}),
]


@pytest.mark.parametrize(("name", "fields"), KINDS)
def test_a_trial_takes_what_the_model_will(tiny_model: Any, name: str, fields: dict[str, Any]) -> None:
    path: Path = tiny_model(name)
    config = ModelConfig(path=str(path), n_ctx=1024, threads=1, n_gpu_layers=0, **fields)
    told = Trial(config, path).laid()
    model = loaded(config, path)
    allocated()
    create_contexts(config, model)
    assert told.contexts == allocated().contexts
    assert told.weights == model.size
    assert len(told.contexts) == 1 + ("embedding" in fields)
    assert look(config, path).resolved["memory_bytes"]["kv"] == told.contexts[0].kv


def test_a_context_that_fits_is_chosen(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path: Path = tiny_model("tiny-llama")
    config = ModelConfig(path=str(path), threads=1, n_gpu_layers=0)
    trial = Trial(config, path)
    whole = trial.laid(8192).here
    monkeypatch.setattr(fit, "PLAINLY", 0.0)
    assert with_context(config, path, here=3 * whole) == config
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        fitted = with_context(config, path, here=whole)
    assert fitted.n_ctx is not None
    assert LEAST < fitted.n_ctx < 8192
    assert fitted.n_ctx % 256 == 0
    assert trial.laid(fitted.n_ctx).here <= 0.9 * whole < trial.laid(fitted.n_ctx + 256).here
    assert f"of {fitted.n_ctx} tokens, and not the 8192 that the model was trained for" in caplog.text
    assert with_context(config, path, here=1).n_ctx == LEAST
    # what comes beside has its room as well
    beside = with_context(config, path, beside=whole // 10, here=whole).n_ctx
    assert beside is not None
    assert beside < fitted.n_ctx


@pytest.mark.parametrize(
    ("free", "why"), [(3.0, "8192 cells (what the model was trained for)"), (1.0, "cells (what fits)")]
)
def test_why_a_context_is_as_long_as_it_is(
    tiny_model: Any, monkeypatch: Any, capsys: Any, caplog: Any, free: float, why: str
) -> None:
    path: Path = tiny_model("tiny-llama")
    config = ModelConfig(path=str(path), threads=1, n_gpu_layers=0)
    whole = Trial(config, path).laid(8192).here
    monkeypatch.setattr(fit, "PLAINLY", 0.0)
    monkeypatch.setattr(fit, "available_bytes", lambda: int(free * whole))
    assert cli.main(["check", str(path), "--threads", "1", "--gpu-layers", "0"]) == 0
    assert f"{why}, " in capsys.readouterr().out
    with caplog.at_level(logging.INFO):
        load_engine(Config(model=config), path)
    assert f"{why}, " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_engine(Config(model=ModelConfig(path=str(path), threads=1, n_gpu_layers=0, n_ctx=512)), path)
    assert "context  512 cells, " in caplog.text


def test_a_context_that_does_not_fit_is_refused_with_one_that_does(tiny_model: Any, monkeypatch: Any) -> None:
    path: Path = tiny_model("tiny-llama")
    config = ModelConfig(path=str(path), threads=1, n_gpu_layers=0)
    trial = Trial(config, path)
    monkeypatch.setattr(fit, "swap_bytes", lambda: 0)
    monkeypatch.setattr(fit, "PLAINLY", 0.0)
    with pytest.raises(ModelLoadError, match=r"Lower model\.n_ctx to (\d+), or model\.n_batch") as caught:
        with_context(ModelConfig(path=str(path), n_ctx=8192, threads=1), path, here=trial.laid(8192).here // 2)
    n_ctx = int(str(caught.value).partition("n_ctx to ")[2].partition(",")[0])
    small = ModelConfig(path=str(path), n_ctx=n_ctx, threads=1)
    assert with_context(small, path, here=trial.laid(8192).here // 2) == small
    with pytest.raises(ModelLoadError, match=r"Lower model\.n_ctx, or"):
        with_context(ModelConfig(path=str(path), n_ctx=8192, threads=1), path, here=1)


def test_beyond_what_it_was_trained_for_sizes_are_linear(tiny_model: Any) -> None:
    path: Path = tiny_model("tiny-llama")
    trial = Trial(ModelConfig(path=str(path), threads=1, n_gpu_layers=0), path)
    assert trial.laid(16384).contexts[0].kv == 2 * trial.laid(8192).contexts[0].kv
    assert trial.laid(10**9).here > 10**12


def test_a_model_that_says_that_it_was_trained_for_billions_is_laid_out_soon(tiny_model: Any) -> None:
    path: Path = tiny_model("tiny-llama")
    said = {"llama.context_length": 2_000_000_000}
    config = ModelConfig(path=str(path), threads=1, n_gpu_layers=0, kv_overrides=said)
    trial = Trial(config, path)
    assert trial.model.n_ctx_train == 2_000_000_000
    assert trial.laid().contexts[0].kv == 2_000_000_000 * trial.laid(8192).contexts[0].kv // 8192
    fitted = with_context(config, path, here=10**9).n_ctx
    assert fitted is not None
    assert 8192 < fitted < 10**7


def test_devices_have_room_of_their_own(tiny_model: Any) -> None:
    path: Path = tiny_model("tiny-llama")
    laid = Trial(ModelConfig(path=str(path), threads=1, n_gpu_layers=0), path).laid(512)._replace(share_here=0.0)
    laid.contexts[0].compute["CUDA0"] = 10**6
    assert laid.elsewhere == laid.weights + laid.contexts[0].kv + 10**6
    assert laid.fits(Room(laid.here, laid.elsewhere))
    assert not laid.fits(Room(laid.here, laid.elsewhere - 1))
    assert not laid.fits(Room(laid.here - 1, laid.elsewhere))
    assert laid.fits(Room(laid.here))


def test_what_llama_cpp_says_is_read() -> None:
    log = """
llama_prepare_model_devices: using device CUDA0 (H200) (0000:00) - 140000 MiB free
load_tensors:        CUDA0 model buffer size =   100.00 MiB
llama_context:        CPU  output buffer size =     0.50 MiB
llama_kv_cache: size =    1.00 MiB (   512 cells,   2 layers, 64/1 seqs), K (f16):    0.50 MiB, V (f16):    0.50 MiB
llama_kv_cache: size =    2.00 MiB (   512 cells,   2 layers, 64/1 seqs), K (f16):    1.00 MiB, V (f16):    1.00 MiB
llama_memory_recurrent: size =    3.00 MiB (     8 cells,  24 layers,  8 seqs 0 rs_seq), R (f32):    1.00 MiB
sched_reserve:      CUDA0 compute buffer size =     4.00 MiB
sched_reserve:  CUDA_Host compute buffer size =     5.00 MiB
sched_reserve:      CUDA0 compute buffer size =     6.00 MiB
llama_context:        CPU  output buffer size =     0.50 MiB
sched_reserve:        CPU compute buffer size =     7.00 MiB
"""
    told = read(log)
    assert told.free == {"CUDA0": 140000 * 2**20}
    first, second = told.contexts
    assert (first.kv, first.state) == (3 * 2**20, 3 * 2**20)
    assert first.compute == {"CUDA0": 6 * 2**20, "CUDA_Host": 5 * 2**20}
    assert second.total == 7 * 2**20
    line = in_one_line(10**9, told.contexts, {"adapters": 5 * 10**7, "projector": 0}, 2 * 10**9, 8 * 10**9)
    assert line == (
        "weights 1.00 GB, KV 3.1 MB, recurrent states 3.1 MB, compute 11.5 MB, a second context for vectors 7.3 MB, "
        "adapters 50.0 MB; finished prompts up to 2.00 GB, 8.00 GB available"
    )


def test_threads_beyond_the_cores_are_told() -> None:
    n = physical_cores()
    assert too_many_threads(ModelConfig(path="m", threads=n)) is None
    assert f"{n + 1} is more than the {n} cores" in (too_many_threads(ModelConfig(path="m", threads=n + 1)) or "")


def test_as_many_sequences_as_cells_are_refused(tiny_model: Any) -> None:
    """llama.cpp would end the process: one id more is for parts of a sequence that are saved."""
    path: Path = tiny_model("tiny-llama")
    model = loaded(config := ModelConfig(path=str(path), n_ctx=64, threads=1, n_gpu_layers=0), path)
    context, _ = create_contexts(config, model)
    assert context.n_seq_max == 63
    with pytest.raises(ConfigError, match="n_ctx 64 must be more than n_seq_max 64"):
        create_contexts(ModelConfig(path=str(path), n_ctx=64, n_seq_max=64, threads=1), model)
