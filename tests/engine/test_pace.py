"""The constants of pace: each is somebody's, and the core has none of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import asdict

import llamafast
from llamafast._core.masks import Masker
from llamafast.config import SchedulerConfig
from llamafast.engine.pace import Pace, pace_of

PACKAGE = Path(llamafast.__file__).parent
FIELDS = asdict(Pace())


def test_the_config_makes_a_pace():
    assert pace_of(SchedulerConfig()) == Pace()
    assert pace_of(SchedulerConfig(target_itl_ms=40)) == Pace(target_itl=0.04)
    assert pace_of(SchedulerConfig(prefill_chunk=128)) == Pace(prefill_chunk=128)


def test_the_core_is_given_all_that_it_names():
    for name in re.findall(r"^    \w+ (\w+)$", (PACKAGE / "_core/pace.pxd").read_text(), re.MULTILINE):
        with pytest.raises(ValueError, match=name):
            Masker({key: value for key, value in FIELDS.items() if key != name})
    Masker(FIELDS)


def test_nothing_is_named_that_nobody_asks_for():
    sources = [*PACKAGE.glob("_core/*.pyx"), *(path for path in PACKAGE.glob("engine/*.py") if path.stem != "pace")]
    used = {name for path in sources for name in re.findall(r"\b_?pace\.(\w+)", path.read_text())}
    assert used == set(FIELDS)


def test_the_core_has_no_seconds_of_its_own():
    for path in PACKAGE.glob("_core/*.pyx"):
        assert not re.search(r"^\s*(cdef double )?[A-Z_]*(SECONDS|PATIENCE|STRETCH)\b.* = ", path.read_text(), re.M), (
            path
        )
