"""GET /v1/models: the model's entry, and the list of it."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class Model(Struct, kw_only=True):
    """``max_model_len`` (tokens of one sequence; some clients look for ``context_length``) and ``meta`` are extensions
    that vLLM and llama-server share: ``size`` in bytes, the longest sequence ``n_ctx``. ``aliases`` and
    ``capabilities`` are llama-server's, in Ollama's words, ``quantization`` and ``arch`` LM Studio's, ``modalities``
    ours: what its prompts are made of. ``parent`` is what vLLM calls the model of an adapter; one that is activated by
    what a prompt says has the two fields that llama-server has for that at /lora-adapters."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["llamafast"] = "llamafast"
    max_model_len: int
    context_length: int
    parent: str | UnsetType | None = UNSET
    alora_invocation_string: str | UnsetType = UNSET
    alora_invocation_tokens: tuple[int, ...] | UnsetType = UNSET
    aliases: list[str] | UnsetType = UNSET
    modalities: list[str]
    capabilities: list[str]
    quantization: str | UnsetType = UNSET
    arch: str | UnsetType = UNSET
    meta: dict[str, int]


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
