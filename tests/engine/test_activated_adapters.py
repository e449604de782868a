"""Adapters that a prompt activates (aLoRA): which prompts do, what they share with those that do not, and what is
refused."""

from __future__ import annotations

import asyncio
from array import array

import pytest
from gguf import GGUFValueType, GGUFWriter
from support.engines import collect, config, plan, settled

from engine.test_adapter_groups import PROMPT, Defined, engine_with, loaded, weights_of
from engine.test_disk_answers import until
from llamafast.config import DiskCacheConfig, LoraConfig
from llamafast.engine import disk_places
from llamafast.engine.adapter_files import check_adapter
from llamafast.engine.adapters import Adapters, last_place
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.kv_log import Held, KVLog
from llamafast.engine.load import load_engine
from llamafast.engine.prefix_key import Adapter, PrefixKey
from llamafast.errors import ConfigError, InvalidRequest
from recipes import tiny_lora

ALORA, OTHER = "alora-tiny-llama", "alora-tiny-llama-2"
INVOCATION = list(tiny_lora.LORAS[ALORA].invocation)
NAMED = (ALORA, {"name": "judge"})
AT = len(PROMPT)
ASKED = [*PROMPT, *INVOCATION, 90]


@pytest.mark.parametrize(
    ("prompt", "wanted", "place"),
    [
        ([1, 2, 3, 1, 2, 3], (1, 2), 3),
        ([1, 2, 3, 1, 2, 3], (2, 3), 4),
        ([1, 2, 3], (1, 2, 3), 0),
        ([1, 2, 3], (3, 1), -1),
        ([1, 1, 1, 2], (1, 1, 2), 1),
        ([1, 1, 1], (1, 1), 1),
        ([], (1,), -1),
        # bytes that are there, at a place where no token begins
        ([0x01000000, 0x00000001], (0x00000101,), -1),
        ([5, 0x01010101, 0x01010101, 6], (0x01010101,), 2),
    ],
)
def test_where_it_is_invoked_last(prompt, wanted, place):
    assert last_place(array("i", prompt), wanted) == place


def activated():
    """A plain one, two activated ones by name, and one that everybody has."""
    adapters = loaded((None, 0.5, 0.5), ("a", 1.0, 0), ("b", 0.5, 0), ("c", 1.0, 1.0))
    adapters[1].invocation, adapters[2].invocation, adapters[3].invocation = (7, 8), (9,), (11, 12)
    defined = Defined()
    return defined, Adapters(adapters, defined, ("the model",))


@pytest.mark.parametrize(
    ("prompt", "model", "chosen", "at", "before", "members"),
    [
        ([1, 2, 3], "", (), None, [], [(0, 0.5)]),
        ([1, 2, 3], "a", (), None, [], [(0, 0.5)]),
        ([1, 7, 8, 7, 8, 2], "a", (), 3, [(0, 0.5)], [(0, 0.5), (1, 1.0)]),
        ([7, 8, 2], "a", (), 0, [(0, 0.5)], [(0, 0.5), (1, 1.0)]),
        ([1, 7, 8], "", (), None, [], [(0, 0.5)]),
        ([1, 7, 8, 2], "", [(1, 0.25)], 1, [], [(1, 0.25)]),
        ([1, 7, 8, 2], "", [(1, 0.25), (2, 1.0)], 1, [], [(1, 0.25)]),
        ([1, 9, 8, 2], "", [(1, 0.25), (2, 1.0)], 1, [], [(2, 1.0)]),
        ([1, 11, 12, 2], "", (), 1, [(0, 0.5)], [(0, 0.5), (3, 1.0)]),
        ([1, 11, 12, 2], "the model", [(0, 1.0)], None, [], [(0, 1.0)]),
    ],
)
def test_which_a_prompt_has(prompt, model, chosen, at, before, members):
    defined, one = activated()
    ((group, invoked_at, first),) = one.applied([array("i", prompt)], model, chosen)
    assert (invoked_at, defined[group.number]) == (at, members)
    assert (defined[first.number] if first.number else []) == before


def test_each_prompt_of_a_request_has_its_own():
    _, one = activated()
    prompts = [array("i", ids) for ids in ([1, 7, 8], [1, 2, 7, 8], [1, 2, 3])]
    told = one.applied(prompts, chosen=[(1, 1.0)])
    assert [applied.invoked_at for applied in told] == [1, 2, None]
    assert told[0].group is told[1].group
    assert [applied.group.ids for applied in told] == [(1,), (1,), ()]


def test_a_prompt_that_invokes_two_is_refused():
    _, one = activated()
    with pytest.raises(InvalidRequest, match=r"the prompt invokes several activated adapters \(1, 2\), and a request"):
        one.applied([array("i", [7, 8, 9])], chosen=[(1, 1.0), (2, 1.0)])


def test_inputs_of_vectors_have_none():
    defined, one = activated()
    assert defined[one.group().number] == [(0, 0.5)]
    for model, chosen, param in (
        ("a", (), "model"),
        ("", [(3, 1.0)], "lora"),
        ("the model", [(0, 1.0), (1, 1.0)], "lora"),
    ):
        with pytest.raises(InvalidRequest, match=r"an activated one \(aLoRA\): it is for text") as refused:
            one.group(model, chosen)
        assert refused.value.param == param
    assert defined[one.group("the model", [(0, 1.0), (3, 0.0)]).number] == [(0, 1.0)]


def test_keys_tell_where_it_is_invoked():
    adapters = (Adapter(b"digest", 1.0),)
    keys = [
        PrefixKey(),
        PrefixKey(adapters=adapters),
        *(PrefixKey(adapters=adapters, invoked_at=at) for at in (0, 1, 11, 110)),
        PrefixKey(invoked_at=1, private=1),
        PrefixKey(tenant="1:1", invoked_at=1),
    ]
    assert len({key.encoded() for key in keys}) == len(keys)


async def heard(engine, prompt, **options):
    """The text, and how much of the prompt was taken from elsewhere."""
    generation = engine.submit(plan(*prompt, **{"max_tokens": 12, "ignore_eos": True} | options))
    (told,) = await collect(generation)
    await settled(engine)
    return told[0], generation.cached_tokens


@pytest.mark.parametrize("kind", [{}, {"kv_unified": False}])
async def test_the_base_models_prefix_is_its_too_and_nothing_behind_it(tiny_model, kind):
    alone = engine_with(tiny_model, NAMED)
    truth = {model: (await heard(alone, ASKED, model=model))[0] for model in ("", "judge")}
    assert truth[""] != truth["judge"]
    assert (await heard(alone, PROMPT, model="judge"))[0] == (await heard(alone, PROMPT))[0]
    await alone.close()
    for first, second in (("", "judge"), ("judge", "")):
        engine = engine_with(tiny_model, NAMED, ram_bytes=10**8, **kind)
        assert await heard(engine, ASKED, model=first) == (truth[first], 0)
        assert await heard(engine, ASKED, model=second) == (truth[second], AT)
        for model in (first, second):
            assert await heard(engine, ASKED, model=model) == (truth[model], len(ASKED) - 1)
        # in the next turn what was invoked before is the base model's
        turn = [*ASKED, *range(40, 60), *INVOCATION]
        assert (await heard(engine, turn, model="judge"))[1] == len(ASKED)
        assert (await heard(engine, ASKED, model="judge", cache_salt="other"))[1] == 0
        await engine.close()


async def test_at_the_first_token_all_is_its(tiny_model):
    engine = engine_with(tiny_model, NAMED, ram_bytes=10**8)
    prompt = [*INVOCATION, *PROMPT]
    plain, judged = await heard(engine, prompt), await heard(engine, prompt, model="judge")
    assert plain[0] != judged[0]
    assert judged[1] == 0
    assert await heard(engine, prompt, model="judge") == (judged[0], len(prompt) - 1)
    await engine.close()


async def test_it_is_all_the_same_with_everything_else(tiny_model):
    """Several choices, log probabilities of the prompt, drafts and a cut in the middle: as it is alone."""
    alone, engine = (
        engine_with(tiny_model, NAMED, ram_bytes=ram_bytes, draft_model=drafts, n_seq_max=8)
        for ram_bytes, drafts in ((0, "none"), (10**8, "prompt-lookup-decoding"))
    )
    truth = (await heard(alone, ASKED, model="judge", max_tokens=60))[0]
    scored = alone.submit(plan(*ASKED, model="judge", max_tokens=0, prompt_logprobs=True, top_logprobs=0))
    expected = [one async for batch in scored for event in batch for one in event.prompt_logprobs or ()]
    for _ in range(2):
        generation = engine.submit(plan(*ASKED, model="judge", n=3, max_tokens=60, ignore_eos=True))
        beside = asyncio.create_task(heard(engine, ASKED, max_tokens=60))
        assert [text for text, _ in await collect(generation)] == [truth] * 3
        await beside
        scores = engine.submit(plan(*ASKED, model="judge", max_tokens=0, prompt_logprobs=True, top_logprobs=0))
        told = [one async for batch in scores for event in batch for one in event.prompt_logprobs or ()]
        assert [one.token for one in told] == [one.token for one in expected] == ASKED[1:]
        assert max(abs(one.logprob - other.logprob) for one, other in zip(told, expected, strict=True)) < 1e-3
    for one in (alone, engine):
        await one.close()


@pytest.mark.usefixtures("patience")
async def test_what_lies_on_a_disk_is_found_by_the_next_process(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_places, "LEAST_RAM", 10**8)
    disk = DiskCacheConfig(path=str(tmp_path / "disk"), max_bytes=10**8, min_tokens=8)
    first = engine_with(tiny_model, NAMED, ram_bytes=10**8, disk_cache=disk)
    truth = (await heard(first, ASKED, model="judge"))[0]
    await first.close(10)
    second = engine_with(tiny_model, NAMED, ram_bytes=10**8, disk_cache=disk)
    await until(second, disk_entries=2)
    assert await heard(second, ASKED, model="judge") == (truth, len(ASKED) - 1)
    assert second.counters()["prefix_hits_disk"] == len(ASKED) - 1
    assert second.counters()["disk_orphans"] == 0
    assert (await heard(second, ASKED))[1] == AT
    await second.close(10)


async def test_what_was_computed_with_it_goes_with_it_and_the_rest_stays(tiny_model):
    engine = engine_with(tiny_model, NAMED, ram_bytes=10**8)
    plain, judged = await heard(engine, PROMPT), await heard(engine, ASKED, model="judge")
    assert judged[1] == AT
    states = engine.counters()["cache_states"]
    await engine.adapters.unload("judge")
    assert engine.counters()["cache_states"] == states - 1
    assert await heard(engine, PROMPT) == (plain[0], AT - 1)
    await engine.adapters.load("judge", tiny_lora.build(ALORA))
    assert await heard(engine, ASKED, model="judge") == (judged[0], AT)
    (one,) = engine.adapters.listed()
    assert one.invocation == tuple(INVOCATION)
    uses = engine.adapters.uses()[0]
    assert uses.n_requests == 1
    await heard(engine, PROMPT, model="judge")  # which does not invoke it
    assert engine.adapters.uses()[0].n_requests == 1
    await engine.close()


async def test_its_limits_are_told(tiny_model):
    engine = engine_with(tiny_model, NAMED, (OTHER, {"name": "other"}), embedding=True, pooling_type=1)
    both = [*PROMPT, *INVOCATION, *tiny_lora.LORAS[OTHER].invocation, 50]
    with pytest.raises(InvalidRequest, match="several activated"):
        engine.submit(plan(*both, lora=((0, 1.0), (1, 1.0))))
    text = (await heard(engine, both, lora=((0, 1.0),)))[0]
    assert text != (await heard(engine, both, lora=((1, 1.0),)))[0]
    with pytest.raises(InvalidRequest, match="not for vectors"):
        await engine.embed(EmbeddingPlan(inputs=(array("i", ASKED),), model="judge"))
    await engine.close()


@pytest.mark.parametrize(
    ("value", "kind", "fault"),
    [
        ([512], GGUFValueType.UINT32, "has 512, and the model has 512 tokens"),
        ([5, 2**32 - 1], GGUFValueType.UINT32, "has 4294967295, and"),
        ([1.0], GGUFValueType.FLOAT32, "is no list of tokens"),
    ],
)
def test_a_list_that_no_prompt_has_is_refused(tiny_model, tmp_path, value, kind, fault):
    path = tmp_path / "it.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.alora.invocation_tokens", value, GGUFValueType.ARRAY, kind)
    for name, (a, b) in tiny_lora.weights(tiny_lora.LORAS[ALORA]).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=rf"adapter\.alora\.invocation_tokens {fault}"):
        check_adapter(path, weights_of(tiny_model), "llama")
    with pytest.raises(ConfigError, match="this model generates no text"):
        check_adapter(tiny_lora.build(ALORA), weights_of(tiny_model), "llama", generates=False)


async def test_routers_are_told_of_the_base_models_prefix_alone(tiny_model):
    log, model, path = KVLog(), tiny_model("tiny-llama"), tiny_lora.build(ALORA)
    asked = config(model, n_ctx=2048, ram_bytes=10**8, loras=(LoraConfig(path=str(path), name="judge"),))
    engine = load_engine(asked, model, loras=[path], kv_log=log)
    engine.start()
    await heard(engine, ASKED, model="judge")
    await engine.close()
    held = [note for note in log.taken() if isinstance(note, Held)]
    assert {note.tier for note in held} == {"GPU", "CPU"}
    assert all(list(note.tokens) == PROMPT for note in held)
