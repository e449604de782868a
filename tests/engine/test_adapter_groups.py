"""Which adapters a request has, and that nobody else's show in what it is told."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest
from core.test_adapters import merged
from support.engines import GREEDY, collect, config, plan, settled

from engine.test_disk_answers import until
from engine.test_scheduler import Job, enqueue
from llamafast._core.adapters import MAX_GROUPS
from llamafast.config import DiskCacheConfig, LoraConfig
from llamafast.engine.adapter_files import AdapterFiles, check_adapter, load_adapters
from llamafast.engine.adapters import Adapters, LoadedAdapter
from llamafast.engine.load import load_engine
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.types import Plan
from llamafast.errors import ConfigError, InvalidRequest, QueueFull
from recipes import tiny_lora

NAMES = ("lora-tiny-llama", "lora-tiny-llama-2", "lora-tiny-llama-3")


def loaded(*settings):
    """Adapters by (name, scale, applied)."""
    return [
        LoadedAdapter(name, Path(f"{id}.gguf"), scale, applied, bytes([id]), SimpleNamespace(id=id))
        for id, (name, scale, applied) in enumerate(settings)
    ]


class Defined(dict):
    """A home of adapters: what groups stand for."""

    def define(self, number, members):
        assert 0 < number < MAX_GROUPS
        self[number] = [(adapter.id, scale) for adapter, scale in members]


@pytest.mark.parametrize(
    ("model", "chosen", "members"),
    [
        ("", (), [(0, 0.5), (3, 2.0)]),
        ("the model", (), [(0, 0.5), (3, 2.0)]),
        ("a", (), [(0, 0.5), (1, 1.0), (3, 2.0)]),
        ("b", (), [(0, 0.5), (2, -0.25), (3, 2.0)]),
        ("a", [(0, 0.5), (1, 0.0)], [(0, 0.5)]),
        ("a", [(3, 1.0)], [(1, 1.0), (3, 1.0)]),
        ("", [(2, 1.0), (0, 0.0)], [(2, 1.0)]),
        ("", [(3, 0.1301), (2, 1 / 129), (0, -1)], [(0, -1.0), (3, 8 / 64)]),
        ("c", (), [(0, 0.5), (3, 2.0)]),
        ("gpt-4o", (), [(0, 0.5), (3, 2.0)]),
    ],
)
def test_who_has_which(model, chosen, members):
    defined = Defined()
    adapters = loaded((None, 0.5, 0.5), ("a", 1.0, 0), ("b", -0.25, 0), ("c", 2.0, 2.0))
    one = Adapters(adapters, defined, ("the model", "gpt-*"))
    group = one.group(model, chosen)
    assert defined[group.number] == members
    assert [(key.digest, key.scale) for key in group.key] == [(bytes([id]), scale) for id, scale in members]


def test_who_has_none_is_of_no_group():
    defined = Defined()
    one = Adapters(loaded(("a", 1.0, 0)), defined)
    assert (one.group().number, one.group("a", [(0, 0.001)]).key) == (0, ())
    assert not defined
    with pytest.raises(InvalidRequest, match="no adapter 1"):
        one.group(chosen=[(1, 0.5)])


def test_none_is_chosen_twice():
    one = Adapters(loaded(("a", 1.0, 0)), Defined())
    for choose in (lambda chosen: one.group(chosen=chosen), one.apply):
        with pytest.raises(InvalidRequest, match="the adapter 0 is there twice"):
            choose([(0, 1.0), (0, 0.5)])


def test_what_everybody_has_may_change():
    defined = Defined()
    one = Adapters(loaded((None, 0.5, 0.5), ("a", 1.0, 0)), defined)
    before = one.group()
    one.apply([(1, 0.25)])
    assert [(info.id, info.name, info.scale) for info in one.listed()] == [(0, None, 0.0), (1, "a", 0.25)]
    assert (defined[before.number], defined[one.group().number]) == ([(0, 0.5)], [(1, 0.25)])
    assert defined[one.group("a").number] == [(1, 1.0)]
    with pytest.raises(InvalidRequest):
        one.apply([(2, 1.0)])
    one.apply([])
    assert one.group().number == 0


def test_a_group_is_the_same_as_long_as_somebody_has_it():
    defined = Defined()
    one = Adapters(loaded(("a", 1.0, 0)), defined)
    groups = [one.group(chosen=[(0, k)]) for k in range(1, MAX_GROUPS)]
    assert one.group(chosen=[(0, 5.0)]) is groups[4]
    assert len({group.number for group in groups}) == MAX_GROUPS - 1
    with pytest.raises(QueueFull):
        one.group(chosen=[(0, 0.5)])
    number = groups.pop(7).number
    gc.collect()
    assert one.group(chosen=[(0, 0.5)]).number == number
    assert defined[number] == [(0, 0.5)]


def test_only_so_many_groups_run():
    scheduler = Scheduler(n_seq_max=8, n_cells=None, max_groups=2)
    jobs = [Job(1, 2, group) for group in (0, 1, 2, 1, 3, 0)]
    for job in jobs:
        enqueue(scheduler, [job])
    assert scheduler.admit() == [jobs[0], jobs[1], jobs[3], jobs[5]]
    scheduler.remove(jobs[1])
    assert scheduler.admit() == []
    scheduler.remove(jobs[3])
    assert scheduler.admit() == [jobs[2]]
    for job in (jobs[0], jobs[5]):
        scheduler.remove(job)
    assert scheduler.admit() == [jobs[4]]


def test_a_group_that_has_no_room_waits_its_time():
    scheduler = Scheduler(n_seq_max=8, n_cells=None, max_groups=1)
    first, other = Job(1, 2), Job(1, 2, 1)
    enqueue(scheduler, [first])
    scheduler.admit()
    enqueue(scheduler, [other])
    n_passed = 0
    while n_passed < 100:
        enqueue(scheduler, [job := Job(1, 2)])
        if not scheduler.admit():
            break
        n_passed += 1
        scheduler.remove(job)
    assert n_passed == Scheduler.MAX_PASSED
    scheduler.remove(first)
    assert scheduler.admit() == [other]


def engine_with(tiny_model, *loras, **settings):
    paths = [tiny_lora.build(name) for name, *_ in loras]
    configs = tuple(LoraConfig(path=str(path), **lora[1]) for path, lora in zip(paths, loras, strict=True))
    model = tiny_model("tiny-llama")
    engine = load_engine(config(model, **{"n_ctx": 2048, "loras": configs} | settings), model, loras=paths)
    engine.start()
    return engine


PROMPT = [(7 * k) % 300 + 33 for k in range(60)]


async def text(engine, **options):
    (told,) = await collect(engine.submit(plan(*PROMPT, **{"max_tokens": 16, "ignore_eos": True} | options)))
    return told[0]


async def merged_text(tiny_model, tmp_path, name, scale):
    path = merged(tiny_model("tiny-llama"), name, scale, tmp_path / f"{name}{scale}.gguf")
    engine = load_engine(config(path, n_ctx=2048), path)
    engine.start()
    said = await text(engine)
    await engine.close()
    return said


async def test_without_a_name_it_is_everybodys(tiny_model, tmp_path):
    engine = engine_with(tiny_model, (NAMES[0], {"scale": 0.5}))
    assert not engine.info.adapters
    assert await text(engine) == await merged_text(tiny_model, tmp_path, NAMES[0], 0.5)
    plain = engine_with(tiny_model)
    assert await text(engine, lora=((0, 0.0),)) == await text(plain) != await text(engine)
    for one in (engine, plain):
        await one.close()


async def test_with_a_name_it_is_theirs_who_ask(tiny_model, tmp_path):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), (NAMES[1], {"name": "b", "default": True}))
    assert [*engine.info.adapters] == ["a", "b"]
    assert await text(engine) == await merged_text(tiny_model, tmp_path, NAMES[1], 1.0)
    alone = await text(engine, model="a", lora=((1, 0.0),))
    assert alone == await merged_text(tiny_model, tmp_path, NAMES[0], 1.0)
    assert await text(engine, lora=((0, 1.0),)) == alone
    with pytest.raises(InvalidRequest):
        engine.submit(plan(*PROMPT, lora=((2, 1.0),)))
    await engine.close()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("below", [False, True])
async def test_no_group_is_given_what_another_has_computed(tiny_model, tmp_path, below):
    """Requests at random, one after another and at once, cached in RAM or below it: what each is told is what it is
    told alone."""
    chance = random.Random(3)
    loras = [(name, {"name": name}) for name in NAMES]
    sets = [(), ((0, 1.0),), ((1, 1.0),), ((0, 1.0), (2, 0.5)), ((0, 0.5),)]
    prompts = [PROMPT[:n] + [chance.randrange(33, 300) for _ in range(5)] for n in (20, 40, 60)]
    options = {"sampling": GREEDY, "max_tokens": 8, "ignore_eos": True}
    disk = DiskCacheConfig(path=str(tmp_path / "disk"), max_bytes=10**8, min_tokens=8) if below else None
    alone = engine_with(tiny_model, *loras)
    truth = {}
    for i, prompt in enumerate(prompts):
        for members in sets:
            (told,) = await collect(alone.submit(Plan(prompts=(array("i", prompt),), lora=members, **options)))
            truth[i, members] = told
    await alone.close()
    assert len({told[0] for told in truth.values()}) > 10
    for n_before in range(2 if below else 1):
        engine = engine_with(tiny_model, *loras, ram_bytes=10**8, disk_cache=disk, n_seq_max=8)
        if n_before:
            await until(engine, disk_entries=1)
        for _ in range(12):
            asked = [(chance.randrange(3), chance.choice(sets)) for _ in range(chance.randrange(1, 8))]
            plans = [Plan(prompts=(array("i", prompts[i]),), lora=members, **options) for i, members in asked]
            told = await asyncio.gather(*(collect(engine.submit(one)) for one in plans))
            assert [one[0] for one in told] == [truth[key] for key in asked]
            await settled(engine)
        counters = engine.counters()
        assert counters["prefix_hits"] > 100
        await engine.close(10)
    assert not below or counters["prefix_hits_disk"] > 0


def test_no_adapter_has_the_models_own_name(tiny_model):
    with pytest.raises(ConfigError, match="the model's own name"):
        engine_with(tiny_model, (NAMES[0], {"name": tiny_model("tiny-llama").name}))


def test_of_tied_embeddings_none_is_taken(tiny_model, tmp_path):
    """llama.cpp would end the process at the first request."""
    tied = {name: tensor for name, tensor in weights_of(tiny_model).items() if name != "output.weight"}
    path = tiny_lora.build("lora-tiny-llama-3")
    assert check_adapter(path, weights_of(tiny_model), "llama").alpha == 16.0
    with pytest.raises(ConfigError, match=r"token_embd\.weight\.lora_[ab] changes embeddings|output\.weight"):
        check_adapter(path, tied, "llama")
    only = tmp_path / "only.gguf"
    lora = tiny_lora.Lora("llama", {"token_embd.weight": (64, 512)}, 3)
    tiny_lora.write(only, lora)
    with pytest.raises(ConfigError, match="changes embeddings that the model's output shares"):
        check_adapter(only, tied, "llama")


def test_halves_are_of_one_type(tiny_model, tmp_path):
    path = tmp_path / "mixed.gguf"
    tiny_lora.write(path, tiny_lora.Lora("llama", {"blk.0.attn_q.weight": (64, 64)}, 3), mixed=True)
    with pytest.raises(ConfigError, match="of another type than its other half"):
        check_adapter(path, weights_of(tiny_model), "llama")


def weights_of(tiny_model):
    from llamafast._core.gguf import Gguf

    return Gguf(str(tiny_model("tiny-llama"))).tensors()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("lora-tiny-gemma3", "general.architecture is 'gemma3', not 'llama'"),
        ("lora-smollm2", r"attn_q\.weight\.lora_a has the shape \(576, 4, 1, 1\), not \(64, 4, 1, 1\)"),
    ],
)
def test_what_is_another_models_is_refused_by_name(tiny_model, name, fault):
    with pytest.raises(ConfigError, match=fault):
        check_adapter(tiny_lora.build(name), weights_of(tiny_model), "llama")


def test_what_is_no_adapter_is_refused(tiny_model, tmp_path):
    weights = weights_of(tiny_model)
    data = tiny_lora.build("lora-tiny-llama").read_bytes()
    cases = {
        "cut.gguf": (data[:-100], "ends behind the end of the file"),
        "no.gguf": (b"no", "is no GGUF"),
        "nan.gguf": (data[:-4] + b"\xff\xff\xff\x7f", "has numbers that are none"),
        "half.gguf": (data.replace(b"attn_q.weight.lora_b", b"attn_q.weight.lora_c"), "lora_a has no other half"),
        "other.gguf": (data.replace(b"blk.1.attn_q.weight", b"blk.9.attn_q.weight"), "belongs to no weight"),
    }
    for name, (broken, fault) in cases.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ConfigError, match=f"{name}.*{fault}"):
            check_adapter(tmp_path / name, weights, "llama")
    with pytest.raises(ConfigError, match=r"gone\.gguf"):
        check_adapter(tmp_path / "gone.gguf", weights, "llama")
    with pytest.raises(ConfigError, match=r"general\.type is None"):
        check_adapter(tiny_model("tiny-llama"), weights, "llama")


def mutate(folder, model, n):
    """In a process of its own, which llama.cpp may end."""
    from llamafast._core.model import Model

    chance = random.Random(1)
    files_read = [tiny_lora.build(name).read_bytes() for name in ("lora-tiny-llama-2", "alora-tiny-llama")]
    one, n_taken, n_named = Model(str(model)), 0, 0
    files = AdapterFiles(one, [Path(model)])
    for k in range(n):
        data = files_read[k % 2]
        head = data.index(b"lora_b") + 4000
        broken = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(head if chance.random() < 0.8 else len(data))
            broken[at] = chance.choice([0, 1, 255, 127, chance.randrange(256), broken[at] ^ 1 << chance.randrange(8)])
        if chance.random() < 0.1:
            del broken[chance.randrange(len(broken)) :]
        path = Path(folder) / "broken.gguf"
        path.write_bytes(broken)
        try:
            n_taken += len(load_adapters([LoraConfig(path=str(path))], [path], one, files))
        except ConfigError as error:
            n_named += str(path) in str(error)
    print(n_taken, n_named)


@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.heavy)])
def test_hundreds_of_broken_files_end_no_process(tiny_model, tmp_path, n):
    arguments = f"{str(tmp_path)!r}, {str(tiny_model('tiny-llama'))!r}, {n}"
    code = f"from engine.test_adapter_groups import mutate; mutate({arguments})"
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    paths = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    n_taken, n_named = map(int, done.stdout.split())
    assert n_taken > 0 < n_named
    assert n_taken + n_named == n
