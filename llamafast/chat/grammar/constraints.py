"""What is asked → a matcher for one vocabulary, tried apart first; and a checker that needs no model.

A compiled grammar is a matcher of llguidance at its start; every choice of a request walks a copy of its own.
"""

from __future__ import annotations

import json
import sys
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
    result: Literal["accepted", "refused", "uncompilable"]
    reason: str | None


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
        return Verdict("refused", f"not allowed at byte {taken}: {raw[taken : taken + 20].decode(errors='replace')!r}")
    if not walk.is_accepting():
        return Verdict("refused", f"not complete at byte {taken}")
    return Verdict("accepted", None)


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


@lru_cache(128)
def _of_bytes(ask: Ask) -> Compiled:
    return _bytes().compile(ask)


@lru_cache(1)
def _bytes() -> Constraints:
    return Constraints(StandIn(257, {256: "<|end|>"}, [256]))
