"""Grammars compiled for a vocabulary, and a checker that needs no model.

A compiled grammar is a matcher of llguidance at its start; every choice of a request walks a copy of its own.
"""

from __future__ import annotations

import json
import sys
from array import array
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TextIO

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from llamafast.chat.grammar import ConstraintOptions, Grammar, json_schema_grammar, requested_grammar
from llamafast.engine.types import Matcher, Vocabulary
from llamafast.errors import InvalidRequest

# Compiled grammars that are kept.
CACHED = 128
# Beyond 2,500 optional properties in one object a grammar counts as too complex; llguidance would stop at 500.
_LIMITS: dict[str, Any] = {"verbose_errors": False, "max_items_in_row": 10_000}
_MAX_QUOTED = 500


class Constraints:
    """Compiles grammars for one vocabulary. Thread-safe; slow, so not for the event loop."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = lru_cache(1)(lambda: _grammar_tokenizer(vocabulary))
        self._compiled = lru_cache(CACHED)(self._compile)

    def requested(self, options: ConstraintOptions) -> Matcher | None:
        """The matcher of what a request's fields ask for. Raises InvalidRequest or UnsupportedParameter."""
        asked = requested_grammar(options)
        return None if asked is None else self.compile([asked[0]], asked[1])

    def compile(self, grammars: list[Grammar], param: str) -> Matcher:
        """The matcher of ``grammars``, the first being where it starts. Raises InvalidRequest with the reason when they
        do not compile, are too large, or no text matches them."""
        try:
            return self._compiled(json.dumps({"grammars": grammars}))
        except ValueError as error:
            raise InvalidRequest(f"`{param}` cannot be followed: {error}", param=param) from error

    def _compile(self, text: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer(), text, log_level=0, limits=LLParserLimits(**_LIMITS))
        if not matcher.is_error():
            # the first mask meets what the constructor leaves for later
            trial = matcher.deep_copy()
            trial.compute_bitmask()
            if trial.is_error():
                matcher = trial
        if matcher.is_error():
            reason = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())
            raise ValueError("no text matches it" if reason == "NoExtensionBias" else reason[:_MAX_QUOTED])
        return matcher


class Verdict(NamedTuple):
    result: Literal["accepted", "refused", "uncompilable"]
    reason: str | None


def check(schema: Any, text: str, *, exact: bool = True) -> Verdict:
    """Whether a request with this JSON schema could be answered with ``text``; a refusal names the byte.

    The order of properties and the amount of white space matter as they do in generation.
    """
    try:
        matcher: Any = _bytes().compile([json_schema_grammar(schema, "schema", exact=exact)], "schema")
    except InvalidRequest as error:
        return Verdict("uncompilable", error.message)
    walk, raw = matcher.deep_copy(), text.encode()
    taken = walk.try_consume_tokens(list(raw))
    if walk.is_error():
        return Verdict("uncompilable", f"too complex to be followed beyond byte {taken}")
    if taken < len(raw):
        return Verdict("refused", f"not allowed at byte {taken}: {raw[taken : taken + 20].decode(errors='replace')!r}")
    if not walk.is_accepting():
        return Verdict("refused", f"not complete at byte {taken}")
    return Verdict("accepted", None)


def check_grammar(grammar: Grammar, param: str) -> None:
    """Raises InvalidRequest with the reason when ``grammar`` does not compile."""
    _bytes().compile([grammar], param)


def matches(grammar: Grammar, text: str, param: str) -> bool:
    """Whether ``text`` as a whole is one of ``grammar``. Raises InvalidRequest when that does not compile."""
    matcher: Any = _bytes().compile([grammar], param)
    walk, raw = matcher.deep_copy(), text.encode()
    return bool(walk.try_consume_tokens(list(raw)) == len(raw) and walk.is_accepting())


def check_lines(source: TextIO, target: TextIO = sys.stdout) -> None:
    """A line {"schema", "data"} in, a line {"result", "reason"} out, until the source ends.

    ``data`` is a JSON value, written with its keys in the schema's order; ``text`` in its place is checked as it is.
    A line that is no such object is answered as uncompilable.
    """
    for line in source:
        if line.strip():
            print(json.dumps(_check_line(line)._asdict()), file=target, flush=True)


def _check_line(line: str) -> Verdict:
    try:
        case = json.loads(line)
        schema = case["schema"]
        return check(schema, case["text"] if "text" in case else json.dumps(case["data"], ensure_ascii=False))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Verdict("uncompilable", f"the line is not an object with schema and data: {type(error).__name__}")


class _Bytes:
    """A vocabulary of single bytes."""

    n_tokens = 257
    llama_pointers = None

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<|end|>"

    def is_control(self, token: int) -> bool:
        return token == 256

    def eog_tokens(self) -> list[int]:
        return [256]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        return array("i", list(text.encode()))


@lru_cache(1)
def _bytes() -> Constraints:
    return Constraints(_Bytes())


def _grammar_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
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
