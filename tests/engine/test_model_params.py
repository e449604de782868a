"""Devices, overrides and servers as a config means them. Devices beside the CPU are a fake registry's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.engines import collect, loaded, plan
from support.engines import config as engine_config

from llamafast._core import model as core_model
from llamafast._core.devices import Device
from llamafast.config import ModelConfig
from llamafast.engine import devices as engine_devices
from llamafast.engine import fit, numa, overrides, placement
from llamafast.engine.devices import devices_of, encoding_device
from llamafast.engine.fit import Trial, with_context
from llamafast.engine.load import load_engine
from llamafast.engine.model_params import drafting_params, model_params
from llamafast.engine.need import memory_need
from llamafast.engine.numa import choose_numa
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError

GB = 10**9


def device(name: str, type: str = "GPU", *, backend: str = "CUDA", id: str | None = None, where: str = "") -> Device:
    return Device(
        name, where or f"a {name}", type, backend, (where and f"{name}[{where}]") or name, id, 20 * GB, 24 * GB
    )


CPU = device("CPU", "CPU", backend="CPU")
CARDS = [device("CUDA0", id="0000:01"), device("CUDA1", id="0000:02")]
SAME_CARD = device("Vulkan0", backend="Vulkan", id="0000:01")
SHARED = [device("Vulkan1", "IGPU", backend="Vulkan"), device("Metal0", "IGPU", backend="Metal")]
REMOTE = [device(f"RPC{i}", backend="RPC", where=f"h{i}:1") for i in range(2)]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says which devices there are. What is remote was registered before."""

    def register(*there: Device) -> None:
        monkeypatch.setattr(
            engine_devices.core,
            "devices",
            lambda of=(): [one for one in (*there, CPU) if one.backend != "RPC" or one.description in of],
        )
        servers = frozenset(one.description for one in there if one.backend == "RPC")
        monkeypatch.setattr(engine_devices, "connected", lambda: servers)
        monkeypatch.setattr(engine_devices, "connect", lambda _: None)
        local = any(one.backend != "RPC" for one in there)
        for module in (core_model, placement):
            monkeypatch.setattr(module, "supports_gpu_offload", lambda: local)

    return register


def model(**said: Any) -> ModelConfig:
    return ModelConfig(**{"path": "m.gguf", "threads": 1} | said)


def names(config: ModelConfig) -> tuple[list[str] | None, list[str]]:
    devices = devices_of(config)
    return devices.names, [one.name for one in devices.used]


def test_what_llama_cpp_takes_by_itself(registry: Any) -> None:
    registry(*CARDS, SAME_CARD, *SHARED)
    assert names(model()) == (None, ["CUDA0", "CUDA1"])
    assert names(model(split_mode=0)) == (None, ["CUDA0"])
    assert names(model(split_mode=0, main_gpu=1)) == (None, ["CUDA1"])
    assert names(model(n_gpu_layers=0)) == (None, [])
    assert names(model(n_gpu_layers=0, override_tensors={"exps": "CUDA0"})) == (None, ["CUDA0", "CUDA1"])
    registry(*SHARED)
    assert names(model()) == (None, ["Vulkan1"])
    registry()
    assert names(model()) == (None, [])


def test_devices_by_name(registry: Any) -> None:
    registry(*CARDS, SAME_CARD, *SHARED)
    assert names(model(devices=("CUDA1", "Metal0"))) == (["CUDA1", "Metal0"], ["CUDA1", "Metal0"])
    assert names(model(devices=("CUDA1", "Metal0"), split_mode=0, main_gpu=1)) == (["CUDA1", "Metal0"], ["Metal0"])
    for none in ("none", ("none",), ()):
        assert names(model(devices=none)) == ([], [])
        assert placement_of(model(devices=none)).on_cpu
    assert not placement_of(model(devices=("CUDA1",))).on_cpu
    told = 'model.devices: CPU is no device here; there are CUDA0, CUDA1, Vulkan0, Vulkan1, Metal0, and "none"'
    with pytest.raises(ConfigError) as caught:
        devices_of(model(devices=("CUDA0", "CPU")))
    assert str(caught.value) == told


def test_what_encodes_media(registry: Any) -> None:
    registry(*CARDS, *REMOTE)
    servers = {"rpc_servers": ("h0:1",)}
    assert encoding_device(model()) == "CUDA0"
    assert encoding_device(model(**servers)) == "CUDA0"
    assert encoding_device(model(devices=("CUDA1",))) == "CUDA1"
    assert encoding_device(model(devices=("RPC0", "CUDA1", "CUDA0"), **servers)) == "CUDA1"
    assert encoding_device(model(split_mode=0, main_gpu=1)) == "CUDA1"
    for cpus in ({"n_gpu_layers": 0}, {"devices": "none"}, {"devices": ("RPC0",), **servers}):
        assert encoding_device(model(**cpus)) is None
    registry(*REMOTE)
    assert encoding_device(model(**servers)) is None


@pytest.mark.parametrize("said", [{"n_gpu_layers": 0}, {"split_mode": 0, "main_gpu": -1}])
def test_servers_that_would_have_nothing_to_compute(registry: Any, said: Any) -> None:
    registry(*REMOTE)
    with pytest.raises(ConfigError, match=r"model\.rpc_servers: have nothing to compute: n_gpu_layers or main_gpu"):
        devices_of(model(rpc_servers=("h0:1",), **said))
    some = model(rpc_servers=("h0:1",), n_gpu_layers=0, override_tensors={"exps": "RPC0"})
    assert names(some) == (["RPC0"], ["RPC0"])
    registry()
    with pytest.raises(ConfigError, match=r'CUDA0 is no device here; there is none but CPUs, and "none"'):
        devices_of(model(devices=("CUDA0",)))


def test_devices_of_servers_are_their_models_alone(registry: Any) -> None:
    registry(*CARDS, *REMOTE)
    assert names(model(rpc_servers=("h0:1",))) == (["RPC0", "CUDA0", "CUDA1"], ["RPC0", "CUDA0", "CUDA1"])
    assert names(model(rpc_servers=("h1:1", "h0:1"), devices=("CUDA1", "RPC1")))[1] == ["CUDA1", "RPC1"]
    assert names(model())[0] == ["CUDA0", "CUDA1"]
    with pytest.raises(ConfigError, match="RPC1 is no device here; there are CUDA0, CUDA1, RPC0"):
        devices_of(model(rpc_servers=("h0:1",), devices=("RPC1",)))
    registry(*REMOTE)
    assert names(model(rpc_servers=("h1:1",))) == (["RPC1"], ["RPC1"])
    assert not placement_of(model(rpc_servers=("h1:1",))).on_cpu
    assert names(model()) == ([], [])
    assert placement_of(model()).on_cpu


def test_experts_of_the_first_layers(tiny_model: Any) -> None:
    path: Path = tiny_model("tiny-qwen3moe")
    whole = model_params(model(n_cpu_moe="all"), path)
    first = model_params(model(n_cpu_moe=1), path)
    assert model_params(model(n_cpu_moe=99), path) == whole
    assert model_params(model(), path).params["tensor_buft_overrides"] == []
    assert [(one.buffers, one.n_tensors) for one in (*whole.moved, *first.moved)] == [("CPU", 6), ("CPU", 3)]
    assert whole.moved[0].n_bytes == 2 * first.moved[0].n_bytes == 2 * 3 * 8 * 32 * 64 * 4
    assert list(first.told()) == ["weights  3 tensors, 0.2 MB, in buffers of CPU"]
    # a file that drafts has tensors of its own
    assert "tensor_buft_overrides" not in drafting_params(model(n_cpu_moe=1))
    assert loaded(model(path=str(path), n_cpu_moe=1, override_tensors=["attn=CPU"]), path).on_cpu


async def test_it_says_the_same_wherever_experts_lie(tiny_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    path: Path = tiny_model("tiny-qwen3moe")
    told = []
    for said in ({}, {"n_cpu_moe": 1, "devices": "none", "override_tensors": ["attn=CPU"], "n_gpu_layers": -1}):
        with caplog.at_level(logging.INFO):
            engine = load_engine(engine_config(path, **said), path)
        engine.start()
        told.append(await collect(engine.submit(plan(*range(40, 60)))))
        await engine.close()
    assert told[0] == told[1]
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("devices  CPUs alone") == 1
    assert sum(line.startswith("weights  ") and line.endswith(" in buffers of CPU") for line in lines) == 1


def test_the_first_of_several_that_match_counts(tiny_model: Any, registry: Any) -> None:
    registry(*CARDS, *REMOTE)
    path: Path = tiny_model("tiny-qwen3moe")
    said = {r"blk\.0\.ffn_up_exps": "CUDA1", r"ffn_(up|down)_exps": "RPC0", "up_exps": "CPU"}
    told = model_params(model(override_tensors=said, n_cpu_moe="all", rpc_servers=("h0:1",)), path)
    pairs = told.params["tensor_buft_overrides"]
    assert [where for _, where in pairs] == ["CUDA1", "RPC0[h0:1]", "CPU", "CPU"]
    assert [(one.buffers, one.n_tensors) for one in told.moved] == [("CUDA1", 1), ("RPC0[h0:1]", 3), ("CPU", 2)]
    by_buffers = model(override_tensors=["exps=RPC0[h0:1]"], rpc_servers=("h0:1",))
    assert model_params(by_buffers, path).moved[0].n_tensors == 6
    assert next(told.told()).startswith("devices  RPC0 (h0:1, 20.00 GB free), CUDA0 (a CUDA0, 20.00 GB free), ")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"override_tensors": {"ffn": "CUDA7"}}, "CUDA7 is no type of buffers that this model may have; there are CPU"),
        (
            {"override_tensors": {"ffn": "CUDA1"}, "split_mode": 0},
            "CUDA1 is no type of buffers .* there are CPU, CUDA0$",
        ),
        ({"override_tensors": {"ffn": "CUDA0"}, "split_mode": 3}, "CUDA0 is no type of buffers .* there are CPU$"),
        ({"override_tensors": {"ffn": "CUDA0"}, "devices": "none"}, "CUDA0 is no type of buffers .* there are CPU$"),
        ({"override_tensors": {"ffn": "CUDA0"}, "devices": ("CUDA1",)}, "there are CPU, CUDA1"),
        ({"override_tensors": {"ffn(": "CPU"}}, r"override_tensors: ffn\( is no pattern: Mismatched"),
        (
            {"override_tensors": {"fnn": "CPU"}},
            r"override_tensors: no tensor of tiny-llama\.gguf has fnn in its name; there are token_embd\.weight, .*, …",
        ),
    ],
)
def test_what_is_wrong_is_told_before_the_model_loads(tiny_model: Any, registry: Any, said: Any, fault: str) -> None:
    registry(*CARDS)
    with pytest.raises(ConfigError, match=r"^model\.") as caught:
        model_params(model(**said), tiny_model("tiny-llama"))
    assert caught.match(fault)


def test_a_model_without_experts_is_told(tiny_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert model_params(model(n_cpu_moe=5), tiny_model("tiny-llama")).params["tensor_buft_overrides"] == []
    assert "model.n_cpu_moe does nothing: tiny-llama.gguf has no experts" in caplog.text


def test_what_stays_on_cpus_is_counted(tiny_model: Any, registry: Any) -> None:
    path: Path = tiny_model("tiny-qwen3moe")
    registry(*CARDS)
    on_gpu = memory_need(model(n_ctx=512), path)
    n_bytes = model_params(model(n_cpu_moe="all"), path).moved[0].n_bytes
    assert on_gpu == 0
    assert memory_need(model(n_ctx=512, n_cpu_moe="all"), path) == pytest.approx(1.1 * n_bytes, abs=1)
    half = memory_need(model(n_ctx=512, n_gpu_layers=1), path)
    assert memory_need(model(n_ctx=512, n_gpu_layers=1, n_cpu_moe="all"), path) == pytest.approx(
        half + 0.55 * n_bytes, abs=2
    )
    back = model(n_ctx=512, n_gpu_layers=1, override_tensors={"exps": "CUDA0"})
    assert memory_need(back, path) == pytest.approx(half - 0.55 * n_bytes, abs=2)
    registry()
    assert memory_need(model(n_ctx=512, n_cpu_moe="all"), path) == memory_need(model(n_ctx=512), path)


def test_it_is_laid_out_so(tiny_model: Any, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp has no such device here: it is the sums that are a fake's."""
    path: Path = tiny_model("tiny-qwen3moe")
    plain = Trial(model(n_ctx=512), path).laid()
    monkeypatch.setattr(fit, "share_here", lambda config, head: 0.0)
    moved = Trial(model(n_ctx=512, n_cpu_moe="all"), path).laid()
    n_bytes = model_params(model(n_cpu_moe="all"), path).moved[0].n_bytes
    assert moved.here == n_bytes + moved.contexts[0].compute["CPU"]
    assert moved.here + moved.elsewhere == plain.here
    assert moved.fits(fit.Room(moved.here, moved.elsewhere))
    assert not moved.fits(fit.Room(moved.here - 1, moved.elsewhere))


@pytest.mark.parametrize("key", ["type_k", "type_v"])
def test_a_type_of_the_cache_that_heads_are_no_multiple_of(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Heads of 16 values. It is found out without the weights."""
    config = model(n_ctx=512, flash_attn=True, **{key: "q8_0"})
    with pytest.raises(ConfigError) as caught:
        with_context(config, tiny_model("tiny-qwen3moe"))
    assert str(caught.value) == (
        f"model.{key}: q8_0 is written in blocks of 32, of which the model's heads of 16 values are no multiple; "
        "f32, f16 and bf16 fit any"
    )


def test_strategies_for_nodes_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    monkeypatch.setattr(numa, "init_numa", told.append)
    monkeypatch.setattr(numa, "NODES", tmp_path)
    for i in range(2):
        (tmp_path / f"node{i}").mkdir()
    (tmp_path / "online").write_text("0-1")
    with caplog.at_level(logging.INFO):
        for strategy, number in (("distribute", 1), ("isolate", 2), ("numactl", 3), ("mirror", 4)):
            monkeypatch.setattr(numa, "_chosen", "disabled")
            choose_numa("disabled")
            choose_numa(strategy)
            choose_numa(strategy)
            assert told.pop() == number
            assert not told
        with pytest.raises(ConfigError, match=r"model\.numa: isolate, and this process computes with mirror already"):
            choose_numa("isolate")
        assert "numa     distribute, over 2 nodes" in caplog.text
        assert "mirror does nothing: llama.cpp has the name, and no code for it" in caplog.text
        (tmp_path / "node1").rmdir()
        monkeypatch.setattr(numa, "_chosen", "disabled")
        choose_numa("distribute")
    assert "distribute does nothing: this machine has one node of memory" in caplog.text


def test_patterns_for_layers() -> None:
    some = overrides.overrides_of(model(n_cpu_moe=2, override_tensors=["a=CPU"]), 12)
    assert [one.key for one in some] == ["override_tensors", "n_cpu_moe"]
    matching = overrides.names_with(
        some[1].pattern,
        [
            "blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_up_exps.bias", "blk.1.ffn_down_chexps.weight",
            "blk.10.ffn_up_exps.weight", "blk.2.ffn_up_exps.weight", "blk.0.ffn_up_shexp.weight",
            "blk.0.ffn_norm_exps.weight", "blk.0.ffn_gate_inp.weight",
        ],
    )  # fmt: skip
    assert matching == ["blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_up_exps.bias", "blk.1.ffn_down_chexps.weight"]
