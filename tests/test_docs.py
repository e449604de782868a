"""The documents say what is there."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.configs import config_in

from benchmarks.front_page import PICTURE, picture
from llamafast import __version__
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.config import Config, PoolConfig
from llamafast.config.fields import Section
from llamafast.config.model import EmbeddingCacheConfig, FimConfig, MtmdConfig
from llamafast.engine.pace import Pace

ROOT = Path(__file__).parent.parent


# What of the config has a page of its own, to which docs/config.md leads.
PAGES = {MtmdConfig: "media.md", EmbeddingCacheConfig: "media.md", FimConfig: "editors.md"}


def sections(kind: type[Section] = Section) -> set[type[Section]]:
    return {kind}.union(*map(sections, kind.__subclasses__()))


@pytest.mark.parametrize("section", sorted(sections(), key=lambda section: section.__name__))
def test_every_config_key_is_documented(section):
    text = (ROOT / "docs" / "config.md").read_text()
    if (page := PAGES.get(section)) is not None:
        assert f"]({page}" in text
        text += (ROOT / "docs" / page).read_text()
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert set(section.__struct_fields__) <= set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", text))))


def test_how_long_a_prompt_may_hold_answers_up_is_told_as_it_is():
    row = f"null: {Pace().gap_stretch} times as long as without it, or {1000 * Pace().gap_seconds:g} |"
    assert row in (ROOT / "docs" / "config.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_config_in_the_tree_loads(path):
    config_in(path)


def test_every_dialect_is_documented_and_counted():
    names = {dialect.name for dialect in DIALECTS}
    assert names | {GENERIC.name} <= set(re.findall(r"`([a-z0-9.-]+)`", (ROOT / "docs" / "tools.md").read_text()))
    for page in (ROOT / "README.md", ROOT / "docs" / "features.md"):
        assert re.findall(r"(\d+) dialects", page.read_text()) == [str(len(names))], page


def test_every_extra_is_documented():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == extras.keys()


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#/]+)\)", index))


def test_the_picture_of_the_front_page_is_that_of_the_figures():
    assert PICTURE.read_text() == picture((ROOT / "docs" / "benchmarks.md").read_text())


def keys(kind: object, path: str) -> set[str]:
    """What a config may have below ``path``, of every form of it."""
    found: set[str] = set()
    for struct in (getattr(kind, "__struct_fields__", None) and [kind]) or ():
        for name, inner in get_type_hints(struct).items():
            found |= {f"{path}.{name}".lstrip("."), *keys(inner, f"{path}.{name}".lstrip("."))}
    for inner in get_args(kind):
        found |= keys(inner, path)
    return found


def test_config_keys_that_pages_name_are_there():
    known = keys(Config, "") | keys(PoolConfig, "")
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for key in re.findall(rf"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)`", page.read_text()):
            assert key in known or key.endswith(".py"), (page, key)


def test_series_that_pages_name_are_those_of_the_metrics_page():
    """Which tests/serve/test_metrics.py compares with the server's."""
    series = re.compile(r"\b(?:llamafast|llamacpp|batch_server|vllm):[a-z_]+")
    known = set(series.findall((ROOT / "docs" / "metrics.md").read_text()))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert set(series.findall(page.read_text())) <= known, page


def test_the_changelog_has_the_newest_first_and_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    days = [datetime.strptime(day, "%d %B %Y") for day in re.findall(r"^### (.*)$", text, re.MULTILINE)]
    assert len(days) > 1
    assert days == sorted(set(days), reverse=True)
    versions = re.findall(r"^## (Unreleased|[0-9.]+)", text, re.MULTILINE)
    assert versions[0] in ("Unreleased", __version__)


def test_every_benchmark_is_on_the_page():
    """What they share has no command."""
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, re.MULTILINE)
    named = set(re.findall(r"[a-z_]+", " ".join(rows)))
    for module in (ROOT / "benchmarks").rglob("*.py"):
        if re.search(r"^    main\(\)$", module.read_text(), re.MULTILINE) and module.stem != "__main__":
            assert module.stem in named, module


def test_commands_that_pages_name_take_what_these_say():
    commands = re.compile(r"`[^`]*python\s+-m\s+((?:benchmarks|recipes)[a-z_.]*)\b([^`]*)`")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for module, arguments in commands.findall(page.read_text()):
            file = ROOT.joinpath(*module.rstrip(".").split(".")).with_suffix(".py")
            sources = [file] if file.exists() else sorted(file.with_suffix("").glob("*.py"))
            said = "".join(source.read_text() for source in sources)
            for flag in re.findall(r"--[a-z-]+", arguments):
                assert f'"{flag}"' in said, (page, module, flag)
            assert said, (page, module)


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


def test_the_tour_names_every_module_and_none_that_is_not_there():
    tour = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "llamafast"
    files = [str(path.relative_to(ROOT)) for path in package.rglob("*.*")]
    for name in re.findall(r"`([a-z_/]+\.(?:py|pyx|pxd|c|h))`", tour):
        assert any(f"/{file}".endswith(f"/{name}") for file in files) or (ROOT / name).exists(), name
    named = set(re.findall(r"[a-z_]+", tour[tour.index("```") : tour.index("## Threads")]))
    # of these the drawing has the folder alone
    folders = ("cli", "config", "batch", "bench", "api/schema", "chat/reply/dialects", "chat/reply/declared")
    for path in [*package.rglob("*.py"), *package.rglob("*.pyx")]:
        whole = not path.is_relative_to(package / "page") and not path.stem.startswith("__")
        if whole and not any(path.is_relative_to(package / folder) for folder in folders):
            assert path.stem in named, path


def test_the_config_in_the_readme_is_valid(tmp_path):
    for block in re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        file = tmp_path / "cfg.json"
        file.write_text(json.dumps(json.loads(block)))
        config_in(file)
