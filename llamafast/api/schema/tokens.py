"""POST /apply-template, /tokenize and /detokenize, in the shapes of llama-server and of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.schema.fragments import GenerationOptions


class TokenizeRequest(ChatRequest, kw_only=True):
    """One of ``content`` (llama-server), ``prompt`` and ``messages`` (vLLM).

    llama-server adds no special tokens unless ``add_special``; vLLM adds them to a prompt unless
    ``add_special_tokens`` is false, and to a chat only if it is true.
    """

    foreign: ClassVar[dict[str, str]] = {name: here for name, here in ChatRequest.foreign.items() if name != "prompt"}

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        name: idle for name, idle in ChatRequest.unserved.items() if name != "add_special_tokens"
    }

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] = field(default_factory=list)
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def twins(self) -> Iterator[dict[str, Any]]:
        yield from super().twins()
        yield self.under("add_special", "add_special_tokens")


class DetokenizeRequest(GenerationOptions, kw_only=True):
    """Only ``tokens`` and ``model`` mean something here."""

    tokens: list[int]


class Prompt(Struct):
    """A chat as the model is to read it."""

    prompt: str


class TokenPiece(Struct):
    """``piece`` is a string, or its bytes where they are not UTF-8."""

    id: int
    piece: str | list[int]


class Tokens(Struct):
    """llama-server knows ``tokens`` only, numbers or the JSON of a TokenPiece each; the other fields are vLLM's."""

    tokens: list[int] | list[Raw]
    count: int
    max_model_len: int
    token_strs: list[Raw] | UnsetType | None = UNSET


class Text(Struct):
    """One text under the names of llama-server and vLLM."""

    content: str
    prompt: str
