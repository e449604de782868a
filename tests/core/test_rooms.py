"""How the core's sources are divided: sizes, directions, and who writes what."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "llamafast" / "_core"
SOURCES = {path.stem: path.read_text() for path in CORE.glob("*.pyx")}
# who writes the parts of a sequence once it is made, by sequence.pxd; what they consist of belongs to other modules
WRITERS = {"tokens": "sequence", "clock": "sequence", "rows": "rows", "share": "live", "out": "output"}


def test_every_module_says_first_what_it_owns():
    for name, text in SOURCES.items():
        assert re.match(r'"""\S.{10,}', text), name


def test_no_module_is_longer_than_can_be_read_at_once():
    assert {name: n for name, text in SOURCES.items() if (n := text.count("\n")) > 400} == {}


def test_cimports_go_round_in_no_circle():
    declared = {path.stem: path.read_text() for path in CORE.glob("*.pxd")}
    used = {
        name: set(re.findall(r"^from \.(\w+) cimport", text + declared.get(name, ""), re.MULTILINE))
        for name, text in SOURCES.items()
    }
    TopologicalSorter({name: others - {name} for name, others in used.items()}).prepare()


@pytest.mark.parametrize("part", WRITERS)
def test_each_part_of_a_sequence_has_one_writer(part):
    written = re.compile(rf"\b\w*(?:state|states\[\w+\]|s|leader|other|self)\.{part}\.\w+ (?:[-+|&]?=) ")
    writers = {name for name, text in SOURCES.items() if written.search(text)}
    assert writers <= {WRITERS[part], "sequence"}
    assert WRITERS[part] in writers or part == "tokens"


def test_one_module_gives_sequence_ids_and_one_function_each_sets_the_phase_and_what_is_in_memory():
    def writers(field: str) -> list[str]:
        return [name for name, text in SOURCES.items() for _ in re.findall(rf"\b(?:s|self)\.{field} = ", text)]

    assert set(writers("seq_id")) == {"sequence", "live", "embedder"}  # an Input has one too
    assert writers("phase") == ["sequence"]
    assert writers(r"tokens\.n_past") == ["sequence"]
