"""The digests by which prefixes of running sequences are found."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
import xxhash
from msgspec.structs import replace
from support.fake_engine import INFO

from llamafast.engine import sequence_planner
from llamafast.engine.types import Plan


@pytest.mark.parametrize("salt", ["", "tenant", "täglich", "x" * 300])
def test_a_chain_begins_with_the_digest_of_the_salt(monkeypatch, salt):
    made = []
    monkeypatch.setattr(sequence_planner, "Sequence", lambda *_, **fields: made.append(fields))
    vocab = SimpleNamespace(check=lambda prompt: None)
    planner = sequence_planner.SequencePlanner(vocab, replace(INFO, max_seq_len=64))
    plan = Plan(prompts=(array("i", [1, 2, 3]),), max_tokens=4, cache_salt=salt)
    list(planner.of(plan))
    assert [(fields["salt"], fields["seed"]) for fields in made] == [
        (salt.encode(), xxhash.xxh3_64_intdigest(salt.encode()))
    ]
    list(planner.of(replace(plan, prompt_logprobs=True, top_logprobs=1)))
    assert made[1]["seed"] == xxhash.xxh3_64_intdigest(made[1]["salt"]) != made[0]["seed"]
