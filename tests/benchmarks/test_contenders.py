"""How the servers are started, and what has to be asked otherwise of one."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import contenders
from benchmarks.compare import scripts_for
from benchmarks.contenders import CONTENDERS, Contender, Llamafast, LlamaServer, Seed, Unavailable, end_tokens
from benchmarks.scenarios import minilm, streams
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import summarize
from recipes import tiny_gguf

SETTINGS = {"n_ctx": 8192, "n_batch": 512, "n_ubatch": 256, "n_seq_max": 4, "n_threads": 3, "n_threads_batch": 5,
            "kv_unified": True}  # fmt: skip


def test_all_get_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER", sys.executable)
    model = str(tiny_gguf.build("tiny-llama"))
    command = LlamaServer().command(model, SETTINGS, 1234, tmp_path)
    pairs = dict(zip(command[1::2], command[2::2], strict=False))
    assert command[0] == sys.executable
    assert command[-2:] == ["--kv-unified", "--no-ui"]
    assert "--embeddings" not in command
    assert "--embeddings" in LlamaServer().command(model, SETTINGS | {"embedding": True}, 1234, tmp_path)
    assert (pairs["--ctx-size"], pairs["--batch-size"], pairs["--ubatch-size"]) == ("8192", "512", "256")
    assert (pairs["--parallel"], pairs["--threads"], pairs["--threads-batch"]) == ("4", "3", "5")
    Llamafast().command("m.gguf", SETTINGS, 1234, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["server"]["port"] == 1234
    model = {name: value for name, value in SETTINGS.items() if not name.startswith("n_threads")}
    assert config["model"] == {"path": "m.gguf", "alias": "benchmark", "threads": 3, "threads_batch": 5, **model}


@pytest.mark.parametrize("works", [False, True])
def test_llama_server_has_its_own_layouts_where_they_do_not_crash(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER", sys.executable)
    monkeypatch.setattr(contenders, "layouts_work", lambda: works)
    assert ("--no-repack" in LlamaServer().command("m.gguf", SETTINGS, 1234, tmp_path)) is not works


def test_without_a_binary_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(contenders, "CACHE", tmp_path)
    with pytest.raises(Unavailable, match="make llama-server"):
        LlamaServer().about()
    monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="LLAMA_SERVER"):
        LlamaServer().about()


def test_the_seed_is_the_one_that_was_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CACHE", tmp_path)
    monkeypatch.setattr(contenders, "version", lambda name: "9.9")
    script = tmp_path / "llama_cpp_python-9.9" / "examples" / "server" / "server.py"
    script.parent.mkdir(parents=True)
    script.write_text('# /// script\n# dependencies = [\n#   "llama-cpp-python",\n#   "uvicorn",\n# ]\n# ///\n')
    assert Seed().script() == script
    assert contenders.script_requirements(script) == ["llama-cpp-python", "uvicorn"]
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "seed-9.9")}))
    site.mkdir(parents=True)
    (tmp_path / "seed-9.9" / "complete").touch()
    command = Seed().command("m.gguf", SETTINGS, 1, tmp_path)
    assert (site / "llama-cpp-python.pth").read_text() == sysconfig.get_path("purelib")
    assert command[1:] == [str(script), "-C", str(tmp_path / "cfg.json")]
    assert json.loads((tmp_path / "cfg.json").read_text())["model"]["store_logits"] is False


def test_the_seed_is_kept_from_ending_early() -> None:
    path = str(tiny_gguf.build("tiny-llama-chain"))
    ends = end_tokens(path)
    assert ends
    scenario = streams("tiny-llama-chain", 2, 1)
    (ask, *_), *_ = scripts_for(Seed(), scenario, 1)
    assert ask.body["logit_bias"] == {str(token): -100.0 for token in ends}
    assert scripts_for(Llamafast(), scenario, 1) == scenario.scripts(1)
    vectors = minilm(2, 1, 1, 8)
    assert scripts_for(Seed(), vectors, 1) == vectors.scripts(1)


@pytest.fixture(scope="module")
def chain_server() -> Iterator[tuple[Contender, int]]:
    work = streams("tiny-llama-chain", 2, 1).size
    contender = CONTENDERS["llamafast"]
    with contender.serving(work.model, work.context_settings(), None) as server:
        assert server.peak_bytes() is None or server.peak_bytes() > 10_000_000
        yield contender, server.port


def test_a_contender_serves(chain_server: tuple[Contender, int]) -> None:
    contender, port = chain_server
    scenario = streams("tiny-llama-chain", 2, 1, tokens=8)
    run = summarize(load(scripts_for(contender, scenario, 1), loopback(port), 30), None)
    assert (run.requests, run.tokens, run.failures) == (2, 16, [])
