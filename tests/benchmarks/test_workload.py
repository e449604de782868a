"""The raw loop and the server get the same work."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.streamed_answers import WORK

from benchmarks import raw
from benchmarks.workload import resolve_model


def test_both_sides_get_the_same_context() -> None:
    work = msgspec.structs.replace(WORK, streams=40, prompt_tokens=200, tokens=100, threads=2)
    config = work.server_config(8123)
    assert config == {
        "server": {"host": "127.0.0.1", "port": 8123},
        "model": {"path": "m.gguf", "alias": "benchmark", "n_ctx": 20_480, "n_batch": 512, "n_ubatch": 512,
                  "n_seq_max": 40, "kv_unified": True, "threads": 2, "threads_batch": 2},
    }  # fmt: skip
    assert work.context_settings()["n_threads"] == 2
    assert "threads" not in work.context_settings()


def test_no_prompt_comes_twice() -> None:
    work = msgspec.structs.replace(WORK, prompt_tokens=16)
    prompts = [
        tuple(work.prompt(*key)) for key in ((run, s, r) for run in range(3) for s in range(8) for r in range(8))
    ]
    assert len(set(prompts)) == len(prompts)
    assert work.prompt(1, 2, 3) == work.prompt(1, 2, 3)


def test_models_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert resolve_model("tiny-llama-chain")[0].is_file()
    own = tmp_path / "own.gguf"
    own.touch()
    assert resolve_model(str(own))[0] == own
    with pytest.raises(FileNotFoundError, match="tiny-llama-chain"):
        resolve_model("no-such-model")


def test_the_raw_loop_does_the_work() -> None:
    work = msgspec.structs.replace(WORK, model=str(resolve_model("tiny-llama")[0]), prompt_tokens=300, tokens=4)
    run = raw.run(work)
    assert 0 < run.prefill_s + run.decode_s <= run.wall_s


def test_the_raw_loop_says_why_it_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ModelLoadError"):
        raw.run(msgspec.structs.replace(WORK, model=str(tmp_path / "none.gguf")))


def test_raw_rates_count_what_they_say() -> None:
    run = raw.RawRun(prefill_s=1.0, decode_s=2.0, wall_s=4.0)
    assert run.decode_rate(WORK) == 2 * 2 * 1 / 2
    assert run.output_rate(WORK) == 2 * 2 * 2 / 4
    assert run.all_rate(WORK) == 2 * 2 * 5 / 4
