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
from llamafast.engine.prefix_key import Adapter, PrefixKey
from llamafast.engine.types import Plan, Tenant

TEXTS = st.text(st.sampled_from("01:aä"), max_size=4) | st.text(st.characters(codec="utf-8"))
ADAPTERS = st.builds(Adapter, st.binary(min_size=32, max_size=32), st.sampled_from([0.0, 0.5, 1.0, -1.0]))
KEYS = st.builds(
    PrefixKey,
    tenant=TEXTS,
    cache_salt=TEXTS,
    adapters=st.lists(ADAPTERS, max_size=2).map(tuple),
    private=st.none() | st.integers(0, 2**63),
)


@given(first=KEYS, second=KEYS, data=st.data())
def test_keys_that_differ_in_any_field_never_meet(first, second, data):
    field = data.draw(st.sampled_from(PrefixKey.__struct_fields__))
    for other in (second, replace(first, **{field: getattr(second, field)})):
        assert (first.encoded() == other.encoded()) == (first == other)


def test_the_order_and_the_scale_of_adapters_matter():
    one, other = Adapter(b"1" * 32, 1.0), Adapter(b"2" * 32, 1.0)
    groups = [(), (one,), (other,), (one, other), (other, one), (one, replace(other, scale=0.5))]
    assert len({PrefixKey(adapters=group).encoded() for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("tenant", "cache", "salt"),
    [
        ("", "", b""),
        ("", "täglich", b"0:8:t\xc3\xa4glich0:0:"),
        ("zoë", "", b"4:zo\xc3\xab0:0:0:"),
        ("alice", "1:a", b"5:alice3:1:a0:0:"),
        ("x" * 300, "y", b"300:" + b"x" * 300 + b"1:y0:0:"),
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
    list(planner.of(replace(plan, n=2, cache_prompt=False), asks))
    own = [fields["salt"] for fields in made[1:]]
    assert own[0] == own[1] != salt
    assert [fields["private"] for fields in made] == [False, True, True]
    del made[1:]
    list(planner.of(replace(plan, prompt_logprobs=True, top_logprobs=1), asks))
    assert made[1]["seed"] == xxhash.xxh3_64_intdigest(made[1]["salt"]) != made[0]["seed"]
