"""Grammars written in Lark's notation as llguidance extends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def regex(text: str) -> str:
    """The regular expression of ``text`` itself."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


class Rules:
    """The rules beside ``start``."""

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._numbers = count()
        self._shared: dict[str, str] = {}

    def add(self, body: str, attributes: str = "") -> str:
        name = f"r{next(self._numbers)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def terminal(self, body: str) -> str:
        name = f"T{next(self._numbers)}"
        self._rules.append(f"{name}: {body}")
        return name

    def shared(self, key: str, write: Callable[[], str]) -> str:
        """The one rule for ``key``, whose body may refer to it."""
        if key not in self._shared:
            name = self._shared[key] = f"r{next(self._numbers)}"
            self._rules.append(f"{name}: {write()}")
        return self._shared[key]

    def in_order(self, schema: Mapping[str, Any], separator: str, write: Callable[[str, Any], str]) -> str:
        """The properties of an object in the order of its schema, those that are not required or not."""
        properties, required = schema.get("properties"), schema.get("required")
        named = list(properties.items()) if isinstance(properties, dict) else []
        needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        first = following = ""
        for key, below in reversed(named):
            written = self.add(write(key, below if isinstance(below, dict) else {}))
            one = f"{written} {following}".strip()
            if key in needed:
                first, following = one, f"{separator} {one}".strip()
            else:
                first, following = self.add(f"{one} | {first}"), self.add(f"{separator} {one} | {following}")
        return first

    def text(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])
