"""Arguments in Gemma's notation: keys bare, strings between marks and without escapes, anything else as in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llamafast.chat.grammar.bare_text import Unwritable, branches, is_text, text_terminal
from llamafast.chat.grammar.lark import Rules, quoted

# What a reader takes for a key, and what a key is where the schema does not name it.
_KEY = re.compile(r"[^{}\[\](),:\"\s]+")
_ANY_KEY = "/[a-zA-Z_][a-zA-Z0-9_]*/"
_ABOUT = frozenset({"type", "title", "description", "default", "examples", "$defs", "definitions", "$schema"})
_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "patternProperties"})
_OF_ARRAYS = frozenset({"items", "minItems", "maxItems"})
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


class Notation:
    """Writes the rules of values of schemas below ``root``.

    ``text`` writes a string that a terminal bounds (None: any), ``number`` a number of a schema. With ``exact`` a
    keyword that cannot be followed is an error, else its value is any value.
    """

    def __init__(
        self,
        root: Mapping[str, Any],
        rules: Rules,
        *,
        exact: bool,
        text: Callable[[str | None], str],
        number: Callable[[Mapping[str, Any]], str],
    ) -> None:
        self._root = root
        self._rules = rules
        self._exact = exact
        self._text = text
        self._number = number

    def value(self, schema: Any) -> str:
        """The name of a rule. Raises Unwritable."""
        # the same schema in another tool refers to other definitions
        key = f"{id(self._root)} {json.dumps(schema, sort_keys=True)}"
        return self._rules.shared(key, lambda: self._written(schema))

    def _written(self, schema: Any) -> str:
        try:
            return " | ".join(map(self._branch, branches(schema, self._root)))
        except Unwritable:
            if self._exact:
                raise
            return self._anything()

    def _branch(self, branch: Mapping[str, Any]) -> str:
        kind = branch.get("type")
        if kind is None and "enum" not in branch:
            if branch.keys() - _ABOUT:
                raise Unwritable("a schema has keywords and no type")
            return self._anything()
        if is_text(branch):
            return self._text(text_terminal([branch], ()))
        if "enum" in branch:
            return " | ".join(map(_constant, branch["enum"]))
        if kind == "object":
            return self._object(branch)
        if kind == "array":
            return self._array(branch)
        if kind in ("integer", "number"):
            _only(branch, _OF_NUMBERS)
            return self._number(branch)
        _only(branch, frozenset())
        return {"boolean": '"true" | "false"', "null": '"null"'}.get(str(kind)) or _unknown(kind)

    def _object(self, branch: Mapping[str, Any]) -> str:
        _only(branch, _OF_OBJECTS)
        properties = branch.get("properties")
        named = properties if isinstance(properties, dict) else {}
        if not named and branch.get("additionalProperties") is not False:
            return self._record()
        if strange := [name for name in named if not _KEY.fullmatch(name)]:
            raise Unwritable(f"a key cannot be {strange[0]!r:.100}")
        required = branch.get("required", [])
        if not isinstance(required, list):
            raise Unwritable("`required` is no list")
        if missing := [name for name in required if not isinstance(name, str) or name not in named]:
            raise Unwritable(f"{missing[0]!r:.100} is required and not among the properties")
        members = self._rules.in_order(branch, '","', lambda key, below: f"{quoted(f'{key}:')} {self.value(below)}")
        return f'"{{" {members} "}}"'

    def _array(self, branch: Mapping[str, Any]) -> str:
        _only(branch, _OF_ARRAYS)
        least, most = branch.get("minItems", 0), branch.get("maxItems")
        if (
            not isinstance(least, int)
            or not isinstance(most, int | None)
            or not 0 <= least <= (least if most is None else most)
        ):
            raise Unwritable("an array has no possible length")
        item = self.value(branch.get("items", {}))
        empty = '"[" "]"'
        if most == 0:
            return empty
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        full = f'"[" {item} ("," {item}){more} "]"'
        return full if least else f"{empty} | {full}"

    def _record(self) -> str:
        """An object of any members."""
        member = self._rules.shared("member", lambda: f'{_ANY_KEY} ":" {self._anything()}')
        return f'"{{" ({member} ("," {member})*)? "}}"'

    def _anything(self) -> str:
        def write() -> str:
            item = self._anything()
            array = f'"[" ({item} ("," {item})*)? "]"'
            number = self._number({"type": "number"})
            return f'{self._text(None)} | {number} | "true" | "false" | "null" | {array} | {self._record()}'

        return self._rules.shared("anything", write)


def _only(branch: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := branch.keys() - _ABOUT - known:
        raise Unwritable(f"`{min(unknown)}` cannot be followed")


def _constant(value: Any) -> str:
    if isinstance(value, list | dict):
        raise Unwritable("`enum` has a value that is no string, number, boolean or null")
    return quoted(json.dumps(value))


def _unknown(kind: Any) -> str:
    raise Unwritable(f"there is no type {kind!r:.100}")
