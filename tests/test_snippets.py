"""Every code block of README and docs does what it says: requests against one server, configs through ``check``.

What is not run says why, and is counted here: a number that grows is somebody's decision.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.snippets import ROOT, Snippet, pages, snippets

from benchmarks.server import Server, serving
from llamafast import cli

ALL = list(snippets())
SHELL, PYTHON = ("sh", "bash"), ("python",)
DATA = ("json", "jsonl", "toml", "yaml")
# Of each page how many blocks are not run: they install, need what is not here, or are no program's.
NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "README.md": 1,
    "docs/bench.md": 1,
    "docs/benchmarks.md": 2,
    "docs/chat.md": 1,
    "docs/claude-code.md": 1,
    "docs/deploy.md": 5,
    "docs/install.md": 5,
    "docs/media.md": 1,
    "docs/metrics.md": 1,
    "docs/models.md": 1,
    "docs/security.md": 1,
    "docs/sizing.md": 1,
    "docs/transcription.md": 2,
}
ADDRESS = re.compile(r"http://(127\.0\.0\.1|localhost):8000")
LONGEST_SECONDS = 120


def of(*languages: str, how: str = "") -> list[Snippet]:
    return [one for one in ALL if one.runs and one.language in languages and one.how == how]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_block_has_a_fence_and_a_language(page: Path):
    """Lines that are only indented are a block for whoever reads, and none for these tests."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?<=\n\n)    \S.*", text) == []


def test_what_is_not_run_is_counted_and_says_why():
    """A block in another language than these needs ``<!-- not run: why -->`` before it: see support/snippets.py."""
    for one in ALL:
        assert one.how if not one.runs else one.language in (*SHELL, *PYTHON, *DATA), f"{one}: {one.language!r}"
        assert not one.runs or one.how in ("", "serve"), f"{one}: {one.how!r}"
    assert dict(Counter(one.page for one in ALL if not one.runs)) == NOT_RUN


@pytest.mark.parametrize("one", [one for one in ALL if one.language in DATA], ids=str)
def test_data_can_be_read(one: Snippet, tmp_path, monkeypatch):
    """A config is checked as ``llamafast check`` does it; that its model is not here is no fault."""
    match one.language:
        case "toml":
            assert tomllib.loads(one.text)
        case "yaml":
            assert list(yaml.safe_load_all(one.text))
        case "jsonl":
            assert [json.loads(line) for line in one.text.splitlines()]
        case _:
            config = json.loads(one.text)
            if config.keys() & {"model", "models", "server"}:
                monkeypatch.chdir(tmp_path)
                for name in ("cert.pem", "key.pem", "keys"):
                    Path(name).write_text("sk-1 name=a\n")
                model = {} if "models" in config else {"model": {"path": "model.gguf"}}
                Path("cfg.json").write_text(json.dumps(model | config))
                assert cli.main(["check", "cfg.json"]) == 0


@pytest.mark.parametrize("one", [one for one in ALL if one.runs and one.language in (*SHELL, *PYTHON)], ids=str)
def test_programs_can_be_read(one: Snippet):
    if one.language in PYTHON:
        ast.parse(one.text)
    else:
        subprocess.run(["bash", "-n"], input=one.text, text=True, check=True)


@pytest.fixture(scope="module")
def server(minilm) -> Iterator[Server]:
    """What ``make serve CONFIG=configs/two-models.json`` serves, elsewhere."""
    config = json.loads((ROOT / "configs" / "two-models.json").read_text())
    config["models"][1]["path"] = str(minilm)

    def at(port: int) -> dict[str, object]:
        return config | {"server": {"port": port}}

    with serving(at, None) as running:
        yield running


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    """Where a block is run: with a model, a config and a batch, as people have them."""
    (tmp_path / "model.gguf").symlink_to(tiny_model("tiny-llama"))
    config = {"model": {"path": str(tmp_path / "model.gguf"), "n_ctx": 512, "threads": 1, "alias": "smollm2-135m"}}
    config["server"] = {"port": 0}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    body = {"model": "smollm2-135m", "prompt": "a", "max_tokens": 2}
    (tmp_path / "in.jsonl").write_text(json.dumps({"custom_id": "a", "url": "/v1/completions", "body": body}) + "\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    curl = shutil.which("curl")
    assert curl is not None, "the documents' requests are made with curl"
    for name, command in (("curl", f"{curl} --fail-with-body -sS"), ("llamafast", f"{sys.executable} -m llamafast")):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "LLAMAFAST_PORT": "0"}


@pytest.mark.heavy
@pytest.mark.parametrize("one", of(*SHELL, *PYTHON), ids=str)
def test_a_program_does_what_it_says(one: Snippet, server: Server, folder: Path):
    text = ADDRESS.sub(f"http://127.0.0.1:{server.port}", one.text)
    command = [sys.executable, "-"] if one.language in PYTHON else ["bash", "-euo", "pipefail"]
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, cwd=folder, env=environment(folder),
        timeout=LONGEST_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("one", of(*SHELL, how="serve"), ids=str)
def test_a_server_starts_as_it_is_said(one: Snippet, folder: Path):
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euc", one.text], cwd=folder, env=environment(folder), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + LONGEST_SECONDS
        while "serving  http" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
