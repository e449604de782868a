"""The calls of llguidance: tokenizers for a vocabulary, grammars compiled or refused with a reason in one line."""

from __future__ import annotations

import json
import logging
import re
from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from llamafast.engine.types import Vocabulary

log = logging.getLogger(__name__)

_MAX_QUOTED = 500
# Bytes of what every text begins with that are cut into tokens on trial: that is done with the GIL.
_MAX_FORCED = 4096
# Where a reason goes on with the lines of the grammar, which is ours.
_LISTING = re.compile(r"\s\d{1,7} \| ")

Grammar = dict[str, Any]


class Uncompilable(Exception):
    """A grammar that llguidance refuses; the text is its reason, in one line."""


def grammar_text(grammars: list[Grammar]) -> str:
    """llguidance's JSON of ``grammars``, the first being where it starts."""
    return json.dumps({"grammars": grammars})


def compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher | str:
    """The matcher of a grammar in llguidance's JSON, at its start, or the reason why there is none.

    May take for ever: llguidance bounds what a grammar grows to, not how long that takes.
    """
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        # the first masks, one before and one after what every text begins with, meet what is left for later
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        trial.try_consume_tokens(tokenizer.tokenize_bytes(trial.compute_ff_bytes()[:_MAX_FORCED]))
        trial.compute_bitmask()
        if not trial.is_error():
            return matcher
        matcher = trial
    if matcher.get_error().startswith("panic"):
        log.warning("llguidance failed to compile a grammar: %s", _folded(matcher.get_error()))
        return "it is too much for the compiler"
    reason = _folded(matcher.get_error().removesuffix("<non-verbose/>"))
    return "no text matches it" if reason == "NoExtensionBias" else reason


def _folded(reason: str) -> str:
    """In one line, without the grammar that it is about."""
    return _LISTING.split(" ".join(reason.split()), maxsplit=1)[0][:_MAX_QUOTED]


def acceptor(grammar: Grammar) -> Callable[[str], bool]:
    """Says of a text whether it as a whole is one of ``grammar``. Raises Uncompilable. May take for ever."""
    start = compiled(single_bytes(), grammar_text([grammar]))
    if isinstance(start, str):
        raise Uncompilable(start)

    def takes(text: str) -> bool:
        walk, raw = start.deep_copy(), text.encode()
        return bool(walk.try_consume_tokens(list(raw)) == len(raw) and walk.is_accepting())

    return takes


@lru_cache(1)
def single_bytes() -> LLTokenizer:
    """Of a vocabulary that has each byte for a token, and an end."""
    return grammar_tokenizer(StandIn(257, {256: "<|end|>"}, [256]))


def grammar_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Takes about a second for a large vocabulary."""
    ids = range(vocabulary.n_tokens)
    control = {token for token in ids if vocabulary.is_control(token)}
    ends = vocabulary.eog_tokens()
    if vocabulary.llama_pointers is None:
        return LLTokenizer(TokenizerWrapper(_Wrapped(vocabulary, control)), eos_token=ends)
    vocab, tokenize = vocabulary.llama_pointers
    # llguidance's mark of tokens that text does not spell
    tokens = [b"\xff" + vocabulary.piece(token) if token in control else vocabulary.piece(token) for token in ids]
    build: Any = LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
    tokenizer: LLTokenizer = build(tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=ends)
    return tokenizer


class StandIn:
    """A vocabulary of ``n_tokens`` whose text is single bytes, with the control tokens of another at their places."""

    llama_pointers = None

    def __init__(self, n_tokens: int, control: Mapping[int, str], ends: list[int]) -> None:
        self.n_tokens = n_tokens
        self._ends = ends
        self._pieces = {token: text.encode() for token, text in control.items()}
        self._control = frozenset(control)
        free = (token for token in range(n_tokens) if token not in control)
        self._bytes = list(islice(free, 256))
        self._pieces |= {token: bytes([byte]) for byte, token in enumerate(self._bytes)}

    def piece(self, token: int) -> bytes:
        return self._pieces.get(token, b"")

    def is_control(self, token: int) -> bool:
        return token in self._control

    def eog_tokens(self) -> list[int]:
        return self._ends

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        return array("i", [self._bytes[byte] for byte in text.encode()])


class _Wrapped:
    """A Vocabulary as llguidance.TokenizerWrapper wants it."""

    bos_token_id = None
    unk_token_id = None

    def __init__(self, vocabulary: Vocabulary, control: set[int]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.eog_tokens()[0]
        self.special_token_ids = sorted(control)
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.n_tokens)]

    def __call__(self, text: str | bytes) -> list[int]:
        decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
        return list(self._vocabulary.tokenize(decoded, add_special=False, parse_special=False))
