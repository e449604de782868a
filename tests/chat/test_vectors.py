"""Numbers of vectors against the standard library's."""

from __future__ import annotations

import base64
import math
import struct
import subprocess
import sys
from array import array
from operator import mul
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.chat.vectors import base64_text, dot_products, first_values, probabilities, rows

FLOATS = st.floats(-1e3, 1e3, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=20))
def test_rows_lie_one_after_another_and_base64_is_little_endian(vectors):
    raw = array("f", [value for vector in vectors for value in vector]).tobytes()
    assert [tuple(row.tolist()) for row in rows(raw, 3)] == vectors
    assert [base64.b64decode(base64_text(row)) for row in rows(raw, 3)] == [struct.pack("<3f", *v) for v in vectors]


@given(st.lists(FLOATS, min_size=2, max_size=50))
def test_a_dot_product_is_summed_exactly_enough(values):
    vectors = [array("f", values), array("f", values[::-1])]
    (found,) = dot_products([vector.tobytes() for vector in vectors], [(0, 1)])
    assert found == pytest.approx(math.fsum(map(mul, *vectors)), rel=1e-12, abs=1e-7)


def test_scores_and_their_probabilities():
    logits = first_values([array("f", [value, 7]).tobytes() for value in (-1e4, -2.5, 0, 3, 1e4)])
    assert logits == [-1e4, -2.5, 0, 3, 1e4]
    expected = [0, 1 / (1 + math.exp(2.5)), 0.5, 1 / (1 + math.exp(-3)), 1]
    assert probabilities(logits) == pytest.approx(expected, rel=1e-15)


def test_a_server_that_only_generates_does_without_numpy():
    code = """if True:
        import sys
        from support.apps import make_app
        from support.fake_engine import FakeEngine
        make_app(FakeEngine())
        print("numpy" in sys.modules)
    """
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env={"PYTHONPATH": "tests"})
    assert done.stdout == "False\n"
