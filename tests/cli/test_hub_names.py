"""Models by their name on the hub: which file is meant, and what is said where the hub does not give it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_hub import serving

ROOT = Path(__file__).parents[2]
FILES = (
    "README.md", "m.Q8_0.gguf", "m.Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m.Q6_K-00001-of-00002.gguf",
    "m.Q6_K-00002-of-00002.gguf", "mmproj-m-BF16.gguf", "mmproj-m-F16.gguf", "m.imatrix.gguf",
)  # fmt: skip
# A process, as huggingface-hub reads its address once.
ASKS = """
import json, sys
from llamafast.config import FromPretrained
from llamafast.hub import find_in_repository
from llamafast.model_files import resolve_model
from llamafast.errors import ModelLoadError
told = []
for repo, quant in json.loads(sys.argv[1]):
    try:
        found = find_in_repository(repo, quant)
        told.append([*found, resolve_model(FromPretrained(repo_id=repo, filename=found.model)).name])
    except ModelLoadError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def ask(tmp_path: Path, url: str, *names: tuple[str, str | None]) -> tuple[list[Any], str]:
    done = subprocess.run(
        [sys.executable, "-c", ASKS, json.dumps(names)],
        env=environment(tmp_path, url), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout), done.stderr


def test_a_name_means_a_file(tmp_path: Path) -> None:
    repositories = {
        "org/repo": {name: name.encode() for name in FILES},
        "org/first": {"b.Q8_0.gguf": b"", "a.F16.gguf": b""},
        "org/empty": {"README.md": b""},
        "org/gated": {"m.gguf": b""},
    }
    names = [
        ("org/repo", None), ("org/repo", "q8_0"), ("org/repo", "UD-Q4_K_M"), ("org/repo", "Q6_K"),
        ("org/repo", "m.Q8_0.gguf"), ("org/first", None), ("org/repo", "Q2_K"), ("org/empty", None), ("org/none", None),
        ("org/gated", None),
    ]  # fmt: skip
    with serving(repositories, gated=frozenset({"org/gated"})) as hub:
        (*found, no_quant, empty, none, gated), _ = ask(tmp_path, hub.url, *names)
    assert found == [
        ["m.Q4_K_M.gguf", "mmproj-m-F16.gguf", "m.Q4_K_M.gguf"],
        ["m.Q8_0.gguf", "mmproj-m-F16.gguf", "m.Q8_0.gguf"],
        ["m-UD-Q4_K_M.gguf", "mmproj-m-F16.gguf", "m-UD-Q4_K_M.gguf"],
        ["m.Q6_K-00001-of-00002.gguf", "mmproj-m-F16.gguf", "m.Q6_K-00001-of-00002.gguf"],
        ["m.Q8_0.gguf", "mmproj-m-F16.gguf", "m.Q8_0.gguf"],
        ["a.F16.gguf", None, "a.F16.gguf"],
    ]
    assert no_quant.startswith("org/repo: has no model of Q2_K; its files: m-UD-Q4_K_M.gguf, m.Q4_K_M.gguf")
    assert empty == "org/empty: has no GGUF; its files: README.md"
    assert none.endswith(f"there is no {hub.url}/org/none, or it is private: set HF_TOKEN")
    assert "agreed to its terms" in gated
    assert "HF_TOKEN" in gated


@pytest.mark.heavy
def test_without_the_hub_it_is_the_cache_or_a_quick_error(tmp_path: Path) -> None:
    with serving({"org/repo": {"m.Q4_K_M.gguf": b"x"}}) as hub:
        assert ask(tmp_path, hub.url, ("org/repo", None))[0] == [["m.Q4_K_M.gguf", None, "m.Q4_K_M.gguf"]]
    began = time.monotonic()
    (cached, unknown), told = ask(tmp_path, hub.url, ("org/repo", None), ("org/other", None))
    assert time.monotonic() - began < 15  # the hub's own retries alone took half a minute
    assert cached == ["m.Q4_K_M.gguf", None, "m.Q4_K_M.gguf"]
    assert unknown.startswith(f"org/other: cannot list the repository: {hub.url}: ")
    assert str(tmp_path / "hub") in unknown
    assert len(told.splitlines()) == len(set(told.splitlines()))


@pytest.mark.heavy
def test_a_name_is_served(tmp_path: Path, tiny_model: Any) -> None:
    """From the name to an answer, fetched from a hub on loopback; without a terminal there is no bar."""
    from support.server_process import Process

    content = tiny_model("tiny-llama").read_bytes()
    with serving({"org/tiny-GGUF": {"tiny.Q4_0.gguf": content}}) as hub:
        (tmp_path / "server").mkdir()
        names = environment(tmp_path, hub.url)
        exports = "; ".join(f"export {name}={names[name]}" for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_XET"))
        program = "-m llamafast serve org/tiny-GGUF:q4_0 --port 0 --ctx 256 --slots 2 -c"
        config = {"server": {"request_log": False}}
        with Process(tmp_path / "server", config, limits=exports, program=program) as process:
            process.until_serving()
            with process.connect(b"GET /v1/models HTTP/1.0\r\n\r\n") as connection:
                assert b"tiny.Q4_0.gguf" in connection.recv(65536)
            process.terminate()
            process.ended(10)
    assert "\r" not in process.log
    assert "fetching tiny.Q4_0.gguf of org/tiny-GGUF" in process.log
    assert "HTTP Request" not in process.log
