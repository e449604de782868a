"""The documents say what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.front_page import PICTURE, picture
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.config import (
    CacheConfig,
    Config,
    FromPackage,
    FromPretrained,
    ModelConfig,
    PoolConfig,
    PoolLimits,
    ResponsesConfig,
    SchedulerConfig,
    ServerConfig,
)
from llamafast.config_file import load_config, refuse_unsupported

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "section",
    [
        Config,
        CacheConfig,
        ServerConfig,
        SchedulerConfig,
        ResponsesConfig,
        ModelConfig,
        PoolConfig,
        PoolLimits,
        FromPretrained,
        FromPackage,
    ],
)
def test_every_config_key_is_documented(section):
    text = (ROOT / "docs" / "config.md").read_text()
    assert set(section.__struct_fields__) <= set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", text))))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_config_in_the_tree_loads(path):
    refuse_unsupported(load_config(path))


def test_every_dialect_is_documented_and_counted():
    names = {dialect.name for dialect in DIALECTS}
    assert names | {GENERIC.name} <= set(re.findall(r"`([a-z0-9.-]+)`", (ROOT / "docs" / "tools.md").read_text()))
    for page in (ROOT / "README.md", ROOT / "docs" / "features.md"):
        assert re.findall(r"(\d+) dialects", page.read_text()) == [str(len(names))], page


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#/]+)\)", index))


def test_the_picture_of_the_front_page_is_that_of_the_figures():
    assert PICTURE.read_text() == picture((ROOT / "docs" / "benchmarks.md").read_text())


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_a_decision_says_what_it_rests_on_and_the_tour_leads_to_it():
    tour = (ROOT / "ARCHITECTURE.md").read_text()
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        text = page.read_text()
        for part in ("Problem", "Choice", "Figure", "What would change our mind"):
            assert re.search(rf"^\*\*{part}\b", text, re.MULTILINE), (page, part)
        assert f"](docs/decisions/{page.name})" in tour, page
        assert len(text.splitlines()) <= 60, page


def test_the_config_in_the_readme_is_valid(tmp_path):
    for block in re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        file = tmp_path / "cfg.json"
        file.write_text(json.dumps(json.loads(block)))
        load_config(file)
