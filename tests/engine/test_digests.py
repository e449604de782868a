"""The digests by which prefixes of running sequences are found."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fake_engine import INFO

from llamafast.engine import sequence_planner
from llamafast.engine.sequence_planner import prefix_salt
from llamafast.engine.types import Plan, Tenant

SALTS = st.text(st.sampled_from("01:aä"), max_size=4) | st.text(st.characters(codec="utf-8"))


@given(st.tuples(SALTS, SALTS), st.tuples(SALTS, SALTS))
def test_only_requests_of_the_same_salts_may_share(first, second):
    assert (prefix_salt(*first) == prefix_salt(*second)) == (first == second)
    assert not prefix_salt(*first).startswith(b"\xff")


@pytest.mark.parametrize(
    ("tenant", "cache", "salt"),
    [
        ("", "", b""),
        ("", "täglich", b"0:t\xc3\xa4glich"),
        ("zoë", "", b"4:zo\xc3\xab"),
        ("alice", "1:a", b"5:alice1:a"),
        ("x" * 300, "y", b"300:" + b"x" * 300 + b"y"),
    ],
)
def test_a_chain_begins_with_the_digest_of_both_salts(monkeypatch, tenant, cache, salt):
    made = []
    monkeypatch.setattr(sequence_planner, "Sequence", lambda *_, **fields: made.append(fields))
    vocab = SimpleNamespace(check=lambda prompt: None)
    planner = sequence_planner.SequencePlanner(vocab, replace(INFO, max_seq_len=64))
    plan = Plan(prompts=(array("i", [1, 2, 3]),), max_tokens=4, cache_salt=cache)
    asks = Tenant("whoever", salt=tenant)
    list(planner.of(plan, asks))
    assert [(fields["salt"], fields["seed"]) for fields in made] == [(salt, xxhash.xxh3_64_intdigest(salt))]
    list(planner.of(replace(plan, prompt_logprobs=True, top_logprobs=1), asks))
    assert made[1]["seed"] == xxhash.xxh3_64_intdigest(made[1]["salt"]) != made[0]["seed"]
