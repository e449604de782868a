"""A model as a config means it, looked at without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig, cache_type_name
from llamafast.engine.allocated import in_one_line
from llamafast.engine.drafting import check_draft_model, check_positions
from llamafast.engine.fit import Laid, Trial, cells_in_words, with_context
from llamafast.engine.info import model_info
from llamafast.engine.memory import available_bytes, part_of, room_of_models, total_bytes
from llamafast.engine.model_params import ModelParams
from llamafast.engine.need import file_bytes
from llamafast.engine.params import all_params
from llamafast.engine.types import ModelInfo, Tokenizer

_CONFIG_NAMES = {"n_threads": "threads", "n_threads_batch": "threads_batch"}


class Shared(NamedTuple):
    """The room of ``n_models`` models, of which one has a part; None: what the machine leaves them."""

    max_bytes: int | None
    n_models: int


class Looked(NamedTuple):
    """``params`` are those of each context, ``info`` and ``tokenizer`` what the layers above know; ``generates`` is in
    ``info``. ``cells`` says how long the context is, and why."""

    path: Path
    params: list[dict[str, Any]]
    info: ModelInfo
    tokenizer: Tokenizer
    laid: Laid
    size: int
    model_params: ModelParams
    cells: str

    @property
    def resolved(self) -> dict[str, Any]:
        """What the config means, by its own names: of two contexts that which embeds, as it is the more particular
        one."""
        first, *_ = contexts = self.laid.contexts
        memory = {
            "weights": self.size,
            "kv": first.kv,
            "recurrent_states": first.state,
            "compute": sum(first.compute.values()),
            "second_context": sum(one.total for one in contexts[1:]),
        }
        if self.laid.drafts.total:
            memory["context_of_the_draft_model"] = self.laid.drafts.total
        params = self.params[-1]
        types = {f"{key}_name": cache_type_name(params[key]) for key in ("type_k", "type_v")}
        where = {
            "devices": [device.name for device in self.model_params.devices],
            "weights_in": {one.buffers: one.n_bytes for one in self.model_params.moved},
        }
        named = {_CONFIG_NAMES.get(key, key): value for key, value in params.items()}
        return {"path": str(self.path), **named, **types, **where, "memory_bytes": memory}

    def memory(self, beside: dict[str, int], cache_bytes: int | None) -> str:
        """In a line, as the server tells it. ``cache_bytes`` null: a quarter of what would be left."""
        available = available_bytes()
        if cache_bytes is None:
            cache_bytes = max(0, available - self.laid.here) // 4 if self.info.generates else 0
        drafts = {"context of who drafts": self.laid.drafts.total}
        return in_one_line(self.size, self.laid.contexts, beside | drafts, cache_bytes, available)


def look(
    config: ModelConfig, path: Path, beside: int = 0, shared: Shared | None = None, draft: Path | None = None
) -> Looked:
    """``beside`` are bytes of what comes with the model, the file of ``draft`` among them, which is that of a small
    model or a head that drafts. Raises ModelLoadError or ConfigError."""
    here = None
    if shared is not None:
        room = room_of_models(shared.max_bytes)
        here = total_bytes() if config.n_ctx else part_of(room, shared.n_models, file_bytes(path) + beside)
    small = draft if config.has_draft_model else None
    asked = config.n_ctx
    config = with_context(config, path, beside, here=here, draft=small)
    trial = Trial(config, path, beside, draft=small)
    params = all_params(config, trial.model)
    vocab = Vocab(trial.model)
    if small is not None:
        check_draft_model(params[0], vocab, small)
    info = model_info(
        config,
        path,
        trial.model,
        vocab,
        n_seq_max=params[0]["n_seq_max"],
        max_seq_len=config.max_seq_len or params[0]["n_ctx"],
        generates=not params[0].get("embeddings"),
    )
    if small is not None:
        check_positions(small, info.max_seq_len)
    cells = cells_in_words(params[0]["n_ctx"], info.n_ctx_train, asked)
    return Looked(path, params, info, vocab, trial.laid(), trial.model.size, trial.params, cells)
