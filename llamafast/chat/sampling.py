"""How a request wants its tokens chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from llamafast.engine.types import INFILL_STAGE, ModelInfo, SamplingParams, Tokenizer
from llamafast.errors import InvalidRequest

MAX_BREAKER_BYTES = 40
MAX_BIASED_BYTES = 1024
MAX_STAGES = 16

# A bias that nothing outweighs: the sum stays a number.
BANNED = -1e30

Biases = Mapping[str, float | bool] | Sequence[tuple[int | str, float | bool]]


def read_sampling(said: Mapping[str, Any], tokenizer: Tokenizer, info: ModelInfo) -> SamplingParams:
    """What was ``said`` of SamplingParams' fields, and the model's own values for the others. Raises InvalidRequest."""
    chosen = dict(said)
    if "top_k" in said:
        chosen["top_k"] = min(max(said["top_k"], 0), info.n_vocab)
    if "logit_bias" in said:
        chosen["logit_bias"] = _logit_bias(said["logit_bias"], tokenizer, info)
    if "samplers" in said:
        chosen["samplers"] = stage_names(said["samplers"])
    if "dry_sequence_breakers" in said:
        chosen["dry_sequence_breakers"] = _breakers(said["dry_sequence_breakers"])
    return replace(info.sampling, **chosen)


def stage_names(samplers: Iterable[str]) -> tuple[str, ...]:
    """Raises InvalidRequest for stages that there are not, or too many."""
    names = tuple(samplers)
    if len(names) > MAX_STAGES:
        raise InvalidRequest(f"`samplers` has more than {MAX_STAGES} stages", param="samplers")
    known = (*SamplingParams().samplers, INFILL_STAGE)
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"`samplers` has {name[:32]!r}: expected {', '.join(known)} or their letters", param="samplers"
            )
    return names


def _breakers(breakers: list[str]) -> tuple[str, ...]:
    for breaker in breakers:
        if not 1 <= len(breaker.encode()) <= MAX_BREAKER_BYTES:
            raise InvalidRequest(
                f"a string of `dry_sequence_breakers` has 1 to {MAX_BREAKER_BYTES} bytes of UTF-8",
                param="dry_sequence_breakers",
            )
    return tuple(dict.fromkeys(breakers))


def _logit_bias(bias: Biases, tokenizer: Tokenizer, info: ModelInfo) -> tuple[tuple[int, float], ...]:
    """OpenAI's object of token ids, or llama-server's pairs of an id or a text, whose tokens all get the bias.

    ``false`` bans a token.
    """
    by_token: dict[int, float] = {}
    if isinstance(bias, Mapping):
        for key, value in bias.items():
            by_token[_token_id(key, info)] = _bias(value)
    else:
        for token, value in bias:
            if isinstance(token, str):
                if len(token.encode()) > MAX_BIASED_BYTES:
                    raise InvalidRequest(
                        f"a text of `logit_bias` has at most {MAX_BIASED_BYTES} bytes of UTF-8", param="logit_bias"
                    )
                tokens = list(tokenizer.tokenize(token, add_special=False, parse_special=True))
            else:
                tokens = [_token_id(str(token), info)]
            by_token.update(dict.fromkeys(tokens, _bias(value)))
    return tuple(by_token.items())


def _token_id(key: str, info: ModelInfo) -> int:
    if key.isascii() and key.isdigit() and len(key) <= len(str(info.n_vocab)) and int(key) < info.n_vocab:
        return int(key)
    raise InvalidRequest(
        f"`logit_bias` has the key {key[:32]!r}: not a token id from 0 to {info.n_vocab - 1}", param="logit_bias"
    )


def _bias(value: float | bool) -> float:
    if value is True:
        raise InvalidRequest("`logit_bias` has the value true: expected a number or false", param="logit_bias")
    return BANNED if value is False else value
