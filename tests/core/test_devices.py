"""Devices, types of buffers and patterns of tensors' names, as llama.cpp has them. This library knows CPUs alone."""

from __future__ import annotations

import pytest

from core.inside import n_products
from core.test_graph import log_probabilities
from core.test_runner import Rig
from llamafast._core.devices import add_rpc_server, devices, init_numa, supports_rpc
from llamafast._core.model import Model, supports_gpu_offload
from llamafast._core.patterns import names_with
from llamafast.errors import ModelLoadError

NAMES = ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.10.ffn_up_exps.weight", "output.weight", "größe"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"exps", [1, 2]),
        (r"^blk\.(0|1)\.", [0, 1]),
        (r"blk\.[0-9]{2}", [2]),
        (r"(?=blk)blk\.0", [0, 1]),  # ECMAScript's
        (r"[[:digit:]]{2}", [2]),
        (r"öß", [4]),
        (r"EXPS", []),
        ("", [0, 1, 2, 3, 4]),
    ],
)
def test_a_pattern_is_found_anywhere_in_a_name(pattern, found):
    assert names_with(pattern, NAMES) == [NAMES[i] for i in found]


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{2", "(?i)a", "(?<=a)b", "\\"])
def test_what_is_no_pattern_of_ecmascript(pattern):
    with pytest.raises(ValueError, match=r"."):
        names_with(pattern, NAMES)


def test_there_is_a_cpu():
    (cpu,) = (one for one in devices() if one.type == "CPU")
    assert (cpu.name, cpu.backend, cpu.buffers, cpu.id) == ("CPU", "CPU", "CPU", None)
    assert 0 < cpu.free <= cpu.total
    assert not supports_gpu_offload()


def test_this_library_reaches_no_other_machine():
    assert not supports_rpc()
    with pytest.raises(ValueError, match="built without RPC"):
        add_rpc_server("127.0.0.1:1")


@pytest.mark.parametrize("strategy", [-1, 5])
def test_what_is_no_strategy(strategy):
    with pytest.raises(ValueError, match=f"{strategy} is no strategy"):
        init_numa(strategy)


def test_what_is_not_there_is_told(tiny_model):
    path = str(tiny_model("tiny-llama"))
    with pytest.raises(ValueError, match="devices: there is no CUDA9"):
        Model(path, devices=["CUDA9"])
    with pytest.raises(ValueError, match="tensor_buft_overrides: there is no type of buffers CUDA9"):
        Model(path, tensor_buft_overrides=[("attn", "CPU"), ("ffn", "CUDA9")])
    with pytest.raises(ValueError, match="devices: there is no CPU that layers can go to"):
        Model(path, devices=["CPU"])
    with pytest.raises(ModelLoadError, match="cannot load"):
        Model(path, tensor_buft_overrides=[("(", "CPU")])
    assert Model(path, devices=[]).on_cpu


@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-llama"])
def test_overrides_to_the_cpu_leave_it_all_as_it_was(tiny_model, name):
    """Weights, logits, and the products that we compute."""
    patterns = [(r"ffn_(gate|up|down)", "CPU"), ("attn", "CPU"), ("output", "CPU")]
    told = []
    for overrides in (None, patterns):
        rig = Rig(tiny_model(name), target_itl=100.0, model={"tensor_buft_overrides": overrides})
        told.append((log_probabilities(rig, 3), n_products(rig.context), rig.model.size))
        rig.close()
    assert told[0] == told[1]
    assert told[0][1] > 0
