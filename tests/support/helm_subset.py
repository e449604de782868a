"""Enough of Helm to render deploy/helm where Helm itself is not installed; `make test-scale` compares the two.

Go's ``if``, ``else``, ``range``, ``end``, variables, pipelines and parentheses, and of Sprig's functions those that the
chart uses. Anything else is an error, so that what passes here says nothing that Helm would read otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|:=|[|(),]|[^\s|(),]+')


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *numbers: sum(map(int, numbers)),
    "dict": lambda *pairs: dict(zip(pairs[::2], pairs[1::2], strict=True)),
    "int": int,
    "int64": int,
    "list": lambda *items: list(items),
    "merge": lambda first, *others: {k: v for one in (*reversed(others), first) for k, v in one.items()},
    "not": lambda value: not value,
    "print": lambda *values: "".join(map(_text, values)),
    "printf": lambda form, *values: form.replace("%d", "%s") % values,
    "quote": lambda value: json.dumps(_text(value)),
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "toJson": lambda value: json.dumps(value, separators=(",", ":"), sort_keys=True),
    "until": lambda n: list(range(n)),
}


class Chart:
    """``values`` are laid over those of the chart, key by key at the top and one below."""

    def __init__(self, folder: Path, name: str, values: dict[str, Any] | None = None) -> None:
        own = yaml.safe_load((folder / "values.yaml").read_text())
        for key, value in (values or {}).items():
            assert key in own, key
            own[key] = {**own[key], **value} if isinstance(own[key], dict) else value
        self._templates = {path.name: path.read_text() for path in sorted((folder / "templates").iterdir())}
        self._data = {
            "Values": own,
            "Release": {"Name": name, "Namespace": "models"},
            "Template": {"BasePath": f"{folder.name}/templates"},
        }

    def objects(self) -> Iterator[dict[str, Any]]:
        for name in self._templates:
            yield from (one for one in yaml.safe_load_all(self.text(name)) if one)

    def text(self, name: str) -> str:
        pieces = _pieces(self._templates[name])
        done, at = self._block(pieces, 0, {"$": self._data})
        assert at == len(pieces), f"{name}: an end too many"
        return done

    def _block(
        self, pieces: list[str | list[str]], at: int, names: dict[str, Any], write: bool = True
    ) -> tuple[str, int]:
        """What is written up to the ``end`` or ``else`` of this block, and where that is."""
        out = []
        while at < len(pieces):
            piece = pieces[at]
            if isinstance(piece, str):
                out.append(piece)
            elif piece[0] in ("end", "else"):
                break
            elif piece[0] == "if":
                text, at = self._if(pieces, at, names, write)
                out.append(text)
            elif piece[0] == "range":
                text, at = self._range(pieces, at, names, write)
                out.append(text)
            elif len(piece) > 1 and piece[1] == ":=":
                if write:
                    names[piece[0]] = self._value(piece[2:], names)
            elif write:
                out.append(_text(self._value(piece, names)))
            at += 1
        return "".join(out) if write else "", at

    def _if(self, pieces: list[Any], at: int, names: dict[str, Any], write: bool) -> tuple[str, int]:
        holds = write and bool(self._value(pieces[at][1:], names))
        text, at = self._block(pieces, at + 1, names, holds)
        if pieces[at] == ["else"]:
            other, at = self._block(pieces, at + 1, names, write and not holds)
            text += other
        assert pieces[at] == ["end"]
        return text, at

    def _range(self, pieces: list[Any], at: int, names: dict[str, Any], write: bool) -> tuple[str, int]:
        name, assigned, *words = pieces[at][1:]
        assert assigned == ":="
        items = self._value(words, names) if write else []
        text = "".join(self._block(pieces, at + 1, {**names, name: item})[0] for item in items)
        _, end = self._block(pieces, at + 1, names, write=False)
        assert pieces[end] == ["end"]
        return text, end

    def _value(self, words: list[str], names: dict[str, Any]) -> Any:
        value, at = self._pipeline(words, 0, names)
        assert at == len(words), words
        return value

    def _pipeline(self, words: list[str], at: int, names: dict[str, Any]) -> tuple[Any, int]:
        value: Any = None
        first = True
        while True:
            arguments, at = self._arguments(words, at, names)
            if not first:
                arguments.append(value)
            head, *rest = arguments
            value = head(*rest) if callable(head) else head
            assert callable(head) or not rest, words
            first = False
            if at == len(words) or words[at] != "|":
                return value, at
            at += 1

    def _arguments(self, words: list[str], at: int, names: dict[str, Any]) -> tuple[list[Any], int]:
        found: list[Any] = []
        while at < len(words) and words[at] not in ("|", ")"):
            word = words[at]
            if word == "(":
                value, at = self._pipeline(words, at + 1, names)
                assert words[at] == ")"
                found.append(value)
            else:
                found.append(self._word(word, names))
            at += 1
        return found, at

    def _word(self, word: str, names: dict[str, Any]) -> Any:
        if word.startswith('"'):
            return json.loads(word)
        if word.isdigit() or word in ("true", "false"):
            return json.loads(word)
        if word == ".":
            return self._data
        if word == "include":
            return lambda path, _: self.text(path.rpartition("/")[2])
        if word[0] in ".$":
            root, *keys = word.split(".")
            value = names[root] if root else self._data
            for key in keys:
                value = value[key]
            return value
        return FUNCTIONS[word]


def _pieces(text: str) -> list[str | list[str]]:
    """Texts, and the words of actions, whose dashes take white space beside them away."""
    pieces: list[str | list[str]] = []
    at, trims = 0, False
    for action in _ACTION.finditer(text):
        before = text[at : action.start()]
        before = before.lstrip() if trims else before
        pieces += [before.rstrip() if action[1] else before, _TOKEN.findall(action[2])]
        at, trims = action.end(), bool(action[3])
    return [*pieces, text[at:].lstrip() if trims else text[at:]]
