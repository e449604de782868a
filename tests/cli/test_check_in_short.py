"""`llamafast check` for people: a line each on the model, its context, chats and memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.server_process import Process

from llamafast import cli
from llamafast.engine import numa
from recipes import tiny_gguf, tiny_lora
from recipes.tiny_gguf_vocabulary import Vocabulary


@pytest.fixture
def without_template(tiny_model: Any, tmp_path: Path) -> Path:
    """A base model, as those are published."""
    path = tmp_path / "base.gguf"
    content = tiny_model("tiny-llama").read_bytes()
    assert b"tokenizer.chat_template" in content
    path.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    return path


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[list[str], str]:
    assert cli.main(["check", *argv]) == 0
    output = capsys.readouterr()
    return output.out.splitlines(), output.err


def test_a_model(tiny_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_model("tiny-llama"))
    lines, error = told(capsys, path, "--ctx", "1024", "--slots", "4", "--threads", "1", "--host", "::1")
    assert error == ""
    assert [line.split()[0] for line in lines] == ["model", "context", "threads", "chat", "memory", "server"]
    assert lines[0].endswith(path)
    assert lines[1] == "context  1024 cells, 4 sequences, steps of up to 1024 rows"
    assert lines[2] == "threads  1 to decode, 1 to prefill"
    assert lines[3].startswith("chat     template from GGUF; tool calls: ")
    assert re.match(r"memory   weights [\d.]+ MB, KV [\d.]+ MB, compute [\d.]+ MB; finished prompts up to ", lines[4])
    assert lines[5].startswith("server   http://[::1]:8000/v1")


def test_what_comes_beside_it(tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tiny_lora.build("lora-tiny-llama")
    flags = ("--lora", str(adapter), "--embedding", "--threads", "512")
    lines, error = told(capsys, str(tiny_model("tiny-llama")), *flags)
    assert "a second context for vectors" in lines[4]
    assert "adapters" in lines[4]
    assert lines[5] == f"adapter  0: {adapter}, scale 1"
    assert "model.threads 512 is more than the" in error


def test_a_draft_model(tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, small = str(tiny_model("tiny-llama")), tiny_model("tiny-qwen35")
    drafts = ("--set", "model.draft_model=draft-simple", "--set")
    lines, error = told(capsys, path, *drafts, f"model.draft_model_path={small}")
    assert error == ""
    assert re.search(r", draft model [\d.]+ MB, context of who drafts [\d.]+ MB; finished prompts", lines[4])
    other = tmp_path / "other.gguf"
    tiny_gguf.llama(other, Vocabulary(520))
    assert cli.main(["check", path, *drafts, f"model.draft_model_path={other}"]) == 1
    assert "draft-simple needs a model of the same vocabulary: token " in capsys.readouterr().err
    _, error = told(capsys, path, *drafts, "model.draft_model_path=/gone.gguf")
    assert "the model that drafts is not on this machine: /gone.gguf: no such file" in error


def test_an_adapter_that_prompts_activate(tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tiny_lora.build("alora-tiny-llama")
    model = {"path": str(tiny_model("tiny-llama")), "loras": [{"path": str(adapter), "name": "judge"}]}
    (tmp_path / "cfg.json").write_text(json.dumps({"model": model}))
    lines, _ = told(capsys, str(tmp_path / "cfg.json"))
    (line,) = (line for line in lines if line.startswith("adapter"))
    (resolved,) = json.loads("\n".join(told(capsys, str(tmp_path / "cfg.json"), "--all")[0]))["resolved"]["loras"]
    assert resolved["alora_invocation_tokens"] == [310, 311]
    assert line == f"adapter  0 judge: {adapter}, scale 1, from {resolved['alora_invocation_string']!r} on"


def test_what_lies_where(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numa, "NODES", tmp_path)
    (tmp_path / "node0").mkdir()
    path = str(tiny_model("tiny-qwen3moe"))
    flags = ("--n-cpu-moe", "1", "--device", "none", "--numa", "isolate", "-ctk", "bf16", "-ctv", "f32")
    lines, _ = told(capsys, path, "--ctx", "512", "--slots", "4", "--threads", "1", *flags)
    assert lines[2:6] == [
        "cache    keys bf16, values f32",
        "devices  CPUs alone",
        "weights  3 tensors, 0.2 MB, in buffers of CPU",
        "numa     isolate does nothing: this machine has one node of memory",
    ]
    (tmp_path / "node1").mkdir()
    lines, _ = told(capsys, path, "--ctx", "512", "--numa", "isolate")
    assert "numa     isolate, over 2 nodes" in lines
    lines, _ = told(capsys, path, "--all", "--ctx", "512", "--threads", "1", *flags)
    resolved = json.loads("\n".join(lines))["resolved"]
    assert (resolved["type_k"], resolved["type_k_name"], resolved["type_v_name"]) == (30, "bf16", "f32")
    assert (resolved["threads"], resolved["threads_batch"], resolved["n_ctx"]) == (1, 1, 512)
    assert not resolved.keys() & {"n_threads", "n_threads_batch"}
    assert (resolved["devices"], resolved["weights_in"]) == ([], {"CPU": 3 * 8 * 32 * 64 * 4})


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--device", "CUDA0"), 'model.devices: CUDA0 is no device here; there is none but CPUs, and "none"'),
        (("-ot", "fnn=CPU"), "model.override_tensors: no tensor of tiny-qwen3moe.gguf has fnn in its name; there are "),
        (
            ("-ot", "ffn=CUDA0"),
            "model.override_tensors: CUDA0 is no type of buffers that this model may have",
        ),
        (("--rpc", "127.0.0.1:1"), "model.rpc_servers: this llama.cpp was built without RPC; "),
        (
            ("-ctk", "q8_0"),
            "model.type_k: q8_0 is written in blocks of 32, of which the model's heads of 16 values",
        ),
    ],
)
def test_what_is_not_there(
    tiny_model: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], fault: str
) -> None:
    assert cli.main(["check", str(tiny_model("tiny-qwen3moe")), "--ctx", "512", *flags]) == 1
    assert fault in capsys.readouterr().err


def test_several_models(tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [{"alias": "a", "path": str(tiny_model("tiny-llama"))}, {"alias": "b", "path": "/gone.gguf"}]
    (tmp_path / "cfg.json").write_text(json.dumps({"models": models, "server": {"uds": "/run/s"}}))
    lines, error = told(capsys, str(tmp_path / "cfg.json"))
    assert [line.split()[0] for line in lines] == ["model", "context", "threads", "chat", "memory", "model", "server"]
    assert lines[5] == "model    b"
    assert lines[6].startswith("server   http on /run/s")
    assert error == "llamafast: the model is not on this machine: /gone.gguf: no such file\n"


def test_a_base_model_is_told(without_template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = told(capsys, str(without_template))
    assert lines[3].startswith("chat     no template, so chats are refused: name one in `model.chat_template`, a Jinja")
    lines, _ = told(capsys, str(without_template), "--chat-template", "chatml")
    assert lines[3].startswith("chat     template from model.chat_template; tool calls: generic, told in words")


@pytest.mark.heavy
def test_a_server_warns_of_one(without_template: Path, tmp_path: Path) -> None:
    with Process(tmp_path, {"model": {"path": str(without_template), "n_ctx": 512}, "server": {"port": 0}}) as process:
        process.until_serving()
        process.terminate()
        process.ended(20)
    assert re.search(r" W chat     no template, so chats are refused: name one in `model\.chat_template`", process.log)
