"""What is decided by where a model is computed. The library here has no GPU: one that has is a fake's word."""

from __future__ import annotations

import pytest
from core.inside import n_attention
from support.engines import collect, config, loaded, plan

from llamafast import cpus
from llamafast._core import model as core_model
from llamafast._core.context import Context
from llamafast._core.model import Model
from llamafast.config import ModelConfig
from llamafast.engine import load, placement
from llamafast.engine.load import context_params, create_context, load_engine
from llamafast.engine.placement import placement_of


@pytest.fixture
def with_gpu(monkeypatch):
    """llama.cpp says that it can compute on a GPU."""
    for module in (core_model, placement):
        monkeypatch.setattr(module, "supports_gpu_offload", lambda: True)


NO_LAYERS = {"n_gpu_layers": 0}
NO_DEVICE = {"split_mode": 0, "main_gpu": -1}
ON_CPU = [NO_LAYERS, NO_LAYERS | {"op_offload": False}, NO_DEVICE, NO_LAYERS | {"main_gpu": 2}]
ON_GPU = [{}, {"n_gpu_layers": -1}, {"n_gpu_layers": 1}, NO_LAYERS | {"op_offload": True}, {"main_gpu": -1}]


def placed(**settings):
    return placement_of(ModelConfig(path="model.gguf", threads=2, threads_batch=3, **settings))


@pytest.mark.parametrize("settings", ON_CPU)
def test_without_a_layer_or_a_device_cpus_compute(with_gpu, settings):
    where = placed(**settings)
    assert (where.on_cpu, where.split_mode, where.main_gpu, where.n_computing) == (True, 0, -1, 3)


@pytest.mark.parametrize("settings", ON_GPU)
def test_any_layer_or_product_on_a_gpu_counts(with_gpu, settings):
    where = placed(**settings)
    assert (where.on_cpu, where.n_computing) == (False, 0)
    assert (where.split_mode, where.main_gpu) == (None, settings.get("main_gpu"))
    assert (where.threads, where.threads_batch) == (2, 3)


@pytest.mark.parametrize("settings", [*ON_CPU, *ON_GPU])
def test_without_a_gpu_cpus_compute_whatever_the_config_says(settings):
    assert placed(**settings).on_cpu


async def attention_of(engine, context):
    engine.start()
    await collect(engine.submit(plan(*range(40, 60))))
    await engine.close()
    return n_attention(context)


@pytest.mark.parametrize(
    ("settings", "on_cpu"), [({"n_gpu_layers": 0}, True), ({}, False), ({"n_gpu_layers": 99}, False)]
)
async def test_cpu_paths_are_kept_with_no_layer_on_the_gpu_and_only_then(
    tiny_model, monkeypatch, with_gpu, settings, on_cpu
):
    contexts = []

    def create(model, params, lower):
        contexts.append(create_context(model, params, lower))
        return contexts[-1]

    monkeypatch.setattr(load, "create_context", create)
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, flash_attn=True, type_k=1, type_v=1, **settings), path)
    assert [context.on_cpu for context in contexts] == [on_cpu]
    assert (await attention_of(engine, contexts[0]) > 0) == on_cpu


def test_nodes_of_ours_are_refused_where_a_gpu_computes(tiny_model, with_gpu):
    model = Model(str(tiny_model("tiny-llama")))
    settings = {"n_ctx": 64, "n_batch": 64, "n_seq_max": 1, "n_threads": 1, "n_threads_batch": 1}
    assert not Context(model, **settings).on_cpu
    with pytest.raises(ValueError, match="only CPUs"):
        Context(model, bare=False, **settings)


def test_a_model_can_be_loaded_without_any_device(tiny_model):
    settings = config(tiny_model("tiny-llama"), n_gpu_layers=0).model
    model = loaded(settings, tiny_model("tiny-llama"))
    assert model.on_cpu
    assert create_context(model, context_params(settings, model)).on_cpu


def test_the_wire_keeps_its_cpus_where_a_gpu_computes(monkeypatch):
    confined = []
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cpus.os, "sched_setaffinity", lambda _, allowed: confined.append(set(allowed)))
    cpus.leave_to_compute(3)
    cpus.leave_to_compute(4)
    cpus.leave_to_compute(0)
    assert confined == [{3}]
