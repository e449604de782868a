"""What is asked → a matcher for one vocabulary, tried apart first; and a checker that needs no model.

A compiled grammar is a matcher of llguidance at its start; every choice of a request walks a copy of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TextIO

from llamafast.chat.grammar.asked import Ask, Asked, Refusal
from llamafast.chat.grammar.compiler import StandIn, compiled, grammar_tokenizer
from llamafast.chat.grammar.trial import TOO_LONG, Attempt, Outcome, outline, quick_trials, trials
from llamafast.engine.types import Matcher, Vocabulary
from llamafast.errors import InvalidRequest


class Compiled(NamedTuple):
    """A matcher, or why there is none. ``n_bytes`` of grammar were compiled."""

    found: Matcher | Refusal
    n_bytes: int

    @property
    def matcher(self) -> Matcher:
        """Raises InvalidRequest with the reason where there is none."""
        if isinstance(self.found, Refusal):
            raise self.found.error()
        return self.found


class Constraints:
    """Compiles what requests ask for, for one vocabulary. Reading that takes up to a second, with the GIL."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = grammar_tokenizer(vocabulary)
        self._outline = outline(vocabulary)

    def compile(self, ask: Ask) -> Compiled:
        quick = self.quickly(ask)
        return self.patiently(ask) if quick is None else quick

    def quickly(self, ask: Ask, attempt: Attempt | None = None) -> Compiled | None:
        """None where it takes longer. Not for the event loop; thread-safe. Raises Stopped where ``attempt`` was, and
        EngineUnavailable."""
        outcome = quick_trials().outcome(self._outline, ask, attempt)
        return None if outcome is None else self._compiled(outcome)

    def patiently(self, ask: Ask, attempt: Attempt | None = None) -> Compiled:
        """The same with as much time as any may take."""
        return self._compiled(trials().outcome(self._outline, ask, attempt) or Outcome(refusal=TOO_LONG))

    def _compiled(self, outcome: Outcome) -> Compiled:
        if outcome.refusal is not None:
            return Compiled(outcome.refusal, 0)
        matcher = compiled(self._tokenizer, outcome.grammar)
        found = Refusal(f"a grammar cannot be followed: {matcher}") if isinstance(matcher, str) else matcher
        return Compiled(found, len(outcome.grammar))


class Verdict(NamedTuple):
    """``at`` is the byte of the text at which a refusal was certain."""

    result: Literal["accepted", "refused", "uncompilable"]
    reason: str | None
    at: int | None = None


def check(schema: Any, text: str, *, exact: bool = True) -> Verdict:
    """Whether a request with this JSON schema could be answered with ``text``; a refusal names the byte.

    The order of properties and the white space matter as they do in generation.
    """
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": exact}}
    try:
        matcher: Any = _of_bytes(Asked({"response_format": form}).ask()).matcher
    except InvalidRequest as error:
        return Verdict("uncompilable", error.message)
    walk, raw = matcher.deep_copy(), text.encode()
    taken = walk.try_consume_tokens(list(raw))
    if walk.is_error():
        return Verdict("uncompilable", f"too complex to be followed beyond byte {taken}")
    if taken < len(raw):
        there = raw[taken : taken + 20].decode(errors="replace")
        return Verdict("refused", f"not allowed at byte {taken}: {there!r}", taken)
    if not walk.is_accepting():
        return Verdict("refused", f"not complete at byte {taken}", taken)
    return Verdict("accepted", None)


def written(value: Any) -> str:
    """A JSON value as answers have it."""
    # llguidance takes U+007F for a control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def place(value: Any, at: int) -> str:
    """Where in ``value`` the byte ``at`` of ``written(value)`` is, as ``$.names[2]``; a key's bytes are its value's."""
    path = "$"
    while at > 0 and (found := _part(value, at)) is not None:
        step, value, at = found
        path += step
    return path


def _part(value: Any, at: int) -> tuple[str, Any, int] | None:
    """The part of an array or object that has the byte ``at``: its step in a path, itself, and the byte within, below
    0 for one of its key. None where it is nobody's."""
    parts: list[tuple[str, str, Any]] = []
    if isinstance(value, dict):
        parts = [(_dotted(name), f"{written(name)}: ", part) for name, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"[{n}]", "", part) for n, part in enumerate(value)]
    start = 1
    for step, key, part in parts:
        inside = start + len(key.encode())
        end = inside + len(written(part).encode())
        if start <= at < end:
            return step, part, at - inside
        start = end + 2
    return None


def _dotted(name: str) -> str:
    return f".{name}" if name.isidentifier() else f"[{written(name)}]"


def check_lines(source: TextIO, target: TextIO = sys.stdout) -> Iterator[Verdict]:
    """A line {"schema", "data"} in, a line {"result", "reason"} out and its verdict, until the source ends.

    ``data`` is a JSON value, written with its keys in the schema's order; ``text`` in its place is checked as it is.
    A line that is no such object is answered as uncompilable.
    """
    for line in source:
        if line.strip():
            verdict = _check_line(line)
            print(json.dumps({"result": verdict.result, "reason": verdict.reason}), file=target, flush=True)
            yield verdict


def _check_line(line: str) -> Verdict:
    try:
        case = json.loads(line)
        schema = case["schema"]
        if "text" in case:
            return check(schema, case["text"])
        return check(schema, written(case["data"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Verdict("uncompilable", f"the line is not an object with schema and data: {type(error).__name__}")


@lru_cache(128)
def _of_bytes(ask: Ask) -> Compiled:
    return _bytes().compile(ask)


@lru_cache(1)
def _bytes() -> Constraints:
    return Constraints(StandIn(257, {256: "<|end|>"}, [256]))
