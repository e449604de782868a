"""GET /v1/models: the model's entry, and the list of it."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class Model(Struct, kw_only=True):
    """``max_model_len`` (tokens of one sequence; some clients look for ``context_length``) and ``meta`` are extensions
    that vLLM and llama-server share, ``aliases`` one of llama-server's, ``modalities`` one of ours: what its prompts
    are made of. ``parent`` is what vLLM calls the model of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["llamafast"] = "llamafast"
    max_model_len: int
    context_length: int
    parent: str | UnsetType | None = UNSET
    aliases: list[str] | UnsetType = UNSET
    modalities: list[str]
    meta: dict[str, int]


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
