"""What a model will take, told by its files' heads, beside what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.engines import loaded

from llamafast._core.gguf import Gguf
from llamafast.config import ModelConfig
from llamafast.engine import need
from llamafast.engine.need import memory_need
from llamafast.engine.placement import Placement
from llamafast.errors import ModelLoadError


@pytest.mark.parametrize(("fields", "value_bytes"), [({}, 2.0), ({"type_k": 0, "type_v": 0}, 4.0), ({"type_k": 8}, 0)])
def test_files_and_cache_and_a_tenth(tiny_model: Any, fields: dict[str, int], value_bytes: float) -> None:
    path: Path = tiny_model("tiny-llama")
    config = ModelConfig(path=str(path), n_ctx=4096, n_gpu_layers=0, **fields)
    model = loaded(config, path)
    tensors = Gguf(str(path)).tensors()
    n_values = 4096 * sum(tensor.shape[1] for name, tensor in tensors.items() if name.endswith("attn_k.weight"))
    cache = n_values * 2 * value_bytes if value_bytes else n_values * (34 / 32 + 2)
    assert model.size <= path.stat().st_size
    assert memory_need(config, path) == pytest.approx(1.1 * (path.stat().st_size + cache), rel=0.001)
    assert memory_need(config, path, [path]) - memory_need(config, path) == pytest.approx(1.1 * path.stat().st_size, 1)


@pytest.mark.parametrize("name", ["tiny-gemma3-swa", "tiny-qwen35", "tiny-mamba", "tiny-qwen3moe"])
def test_of_every_kind_of_memory(tiny_model: Any, name: str) -> None:
    path: Path = tiny_model(name)
    assert memory_need(ModelConfig(path=str(path), n_ctx=512), path) >= path.stat().st_size


def test_layers_on_a_gpu_take_nothing_here(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = tiny_model("tiny-llama")
    placed = Placement(on_cpu=False, split_mode=None, main_gpu=None, threads=1, threads_batch=1, choose_threads=False)
    monkeypatch.setattr(need, "placement_of", lambda config: placed)
    whole, half, none = (
        memory_need(ModelConfig(path=str(path), n_ctx=512, n_gpu_layers=n), path) for n in (0, 1, None)
    )
    assert none == 0
    assert half == pytest.approx(whole / 2, abs=1)


def test_what_is_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for content in (b"", b"GGUF", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"m\.gguf"):
            memory_need(ModelConfig(path=str(file)), file)
