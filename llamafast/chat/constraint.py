"""Grammars compiled for a vocabulary, and a checker that needs no model.

A compiled grammar is a matcher of llguidance at its start; every choice of a request walks a copy of its own.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TextIO

from llguidance import LLMatcher

from llamafast.chat.compiler import StandIn, compiled, grammar_tokenizer
from llamafast.chat.grammar import ConstraintOptions, Grammar, json_schema_grammar, requested_grammar
from llamafast.chat.trial import Task, outline, trials
from llamafast.engine.types import Matcher, Vocabulary
from llamafast.errors import InvalidRequest

# Compiled grammars that are kept.
CACHED = 128


class Constraints:
    """Compiles grammars for one vocabulary. Thread-safe; slow, so not for the event loop."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = lru_cache(1)(lambda: grammar_tokenizer(vocabulary))
        self._outline = lru_cache(1)(lambda: outline(vocabulary))
        self._compiled = lru_cache(CACHED)(self._compile)

    def requested(self, options: ConstraintOptions) -> Matcher | None:
        """The matcher of what a request's fields ask for. Raises InvalidRequest or UnsupportedParameter."""
        asked = requested_grammar(options)
        return None if asked is None else self.compile([asked[0]], asked[1])

    def compile(self, grammars: list[Grammar], param: str) -> Matcher:
        """The matcher of ``grammars``, the first being where it starts. Raises InvalidRequest with the reason when they
        do not compile, are too large, or no text matches them."""
        found = self._compiled(json.dumps({"grammars": grammars}))
        if isinstance(found, str):
            raise InvalidRequest(f"`{param}` cannot be followed: {found}", param=param)
        return found

    def _compile(self, text: str) -> LLMatcher | str:
        if not trials().endured(Task(text, self._outline())):
            return "compiling it takes too long or too much memory"
        return compiled(self._tokenizer(), text)


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
        if "text" in case:
            return check(schema, case["text"])
        # llguidance takes U+007F for a control character
        return check(schema, json.dumps(case["data"], ensure_ascii=False).replace("\x7f", r"\u007f"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Verdict("uncompilable", f"the line is not an object with schema and data: {type(error).__name__}")


@lru_cache(1)
def _bytes() -> Constraints:
    return Constraints(StandIn(257, {256: "<|end|>"}, [256]))
