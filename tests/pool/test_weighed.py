"""How long a context a model chooses that is one of several, and what it says to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from llamafast.config import ModelConfig
from llamafast.engine import fit
from llamafast.engine.fit import LEAST, Trial
from llamafast.engine.memory import part_of, room_of_models
from llamafast.pool import child
from llamafast.pool.wire import Begin


def test_a_part_is_even_unless_files_need_more() -> None:
    assert part_of(60, 4, 5) == 15
    assert part_of(60, 4, 20) == 20 + 10
    assert part_of(60, 4, 70) == 70
    assert room_of_models(5) == 5
    assert room_of_models(None) > 0


def test_a_context_is_chosen_for_the_part_of_the_room(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = tiny_model("tiny-llama")
    monkeypatch.setattr(child, "_own_bytes", lambda: 1000)
    monkeypatch.setattr(fit, "PLAINLY", 0.0)

    def weighed(max_bytes: int, n_models: int, n_ctx: int | None = None) -> tuple[int | None, int]:
        model = ModelConfig(path=str(path), n_ctx=n_ctx, threads=1, n_gpu_layers=0)
        chosen, n_bytes = child._weighed(model, path, [], Begin(Raw(b"{}"), "", False, max_bytes, n_models))
        return chosen.n_ctx, n_bytes

    whole = Trial(ModelConfig(path=str(path), threads=1, n_gpu_layers=0), path).laid().here
    alone, n_bytes = weighed(whole + 1000, 1)
    assert alone is not None
    assert LEAST < alone < 8192
    assert n_bytes <= whole + 1000
    # another one takes half of it, and all of the trained length where there is room for both
    beside, n_bytes = weighed(whole + 1000, 2)
    assert beside is not None
    assert LEAST <= beside < alone
    assert weighed(3 * whole, 2)[0] is None
    # who says it, has it
    assert weighed(whole, 2, 8192)[0] == 8192
    # what fits nowhere is not told to fit
    assert weighed(1000, 1)[0] == LEAST
    assert weighed(1000, 1)[1] > path.stat().st_size


def test_a_model_that_drafts_is_weighed_with_its_context(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = tiny_model("tiny-llama")
    monkeypatch.setattr(child, "_own_bytes", lambda: 0)
    plain = ModelConfig(path=str(path), n_ctx=4096, threads=1, n_gpu_layers=0)
    drafts = replace(plain, draft_model="draft-simple", draft_model_path="d.gguf")
    assert list(child._sources(plain)) == [str(path)]
    assert list(child._sources(drafts)) == [str(path), "d.gguf"]
    begin = Begin(Raw(b"{}"), "", False, 10**10, 1)
    alone = child._weighed(plain, path, [], begin)[1]
    assert child._weighed(drafts, path, [path], begin)[1] == pytest.approx(2 * alone, rel=0.001)
