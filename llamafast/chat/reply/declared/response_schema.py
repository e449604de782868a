"""``model.response_schema``: how to read replies, in the form of llama-cpp-python's example server.

Where the patterns of a schema stand between literals, which is the usual case, its fields become regions and are
streamed; the final message is what the stream said. Other schemas are evaluated once, when the reply is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from llamafast.chat.reply.declared.evaluate import check, evaluate
from llamafast.chat.reply.declared.parser import (
    REASONING_FIELDS,
    Call,
    CallField,
    CallText,
    DeclaredReply,
    TextField,
    WholeReply,
)
from llamafast.chat.reply.declared.patterns import Around, around, ends
from llamafast.chat.reply.declared.regions import Delimiter, Region
from llamafast.chat.reply.declared.response_template import read_call
from llamafast.chat.reply.deltas import NewParser
from llamafast.chat.tools import Tool
from llamafast.errors import ConfigError

_PATH = "model.response_schema"
_MARKS = re.compile(r"<[^<>]*>|[\s>]")
_SERVED = frozenset({"role", "content", "tool_calls", *REASONING_FIELDS})


class ResponseSchema:
    """Raises ConfigError for a schema that cannot be evaluated, or with properties no API has."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.spec = schema
        check(schema, _PATH)
        properties = schema.get("properties", {})
        if unknown := sorted(properties.keys() - _SERVED):
            raise ConfigError(f"{_PATH}.properties.{unknown[0]}: no reply has such a field")
        self._texts = {name: node for name, node in properties.items() if name not in ("role", "tool_calls")}
        self._calls = _without_required(properties.get("tool_calls"))
        self._headers = {found.header for found in self._around().values() if found is not None and found.header}
        self._regions: list[Region] = []
        self._fields: dict[str, TextField | CallField] = {}
        self._openings: list[str] = []
        if not self._build_regions():
            self._regions.clear()

    def parser(self, prompt: str, tools: Sequence[Tool], *, split_reasoning: bool) -> NewParser:
        """What reads the replies to ``prompt``, whose last turn header begins the text that the patterns see."""
        at, header = max(((prompt.rfind(header), header) for header in self._headers), default=(-1, ""))
        begun = prompt[at:] if at >= 0 else ""
        if not self._regions:
            return partial(WholeReply, self._whole, tools, split_reasoning=split_reasoning, begun=begun)
        if not any(opening.startswith(header) for opening in self._openings):
            begun = begun.removeprefix(header)  # it belongs to no region
        return partial(DeclaredReply, self._regions, self._fields, tools, split_reasoning=split_reasoning, begun=begun)

    def _whole(self, text: str) -> tuple[str, str, list[Call]]:
        """Reasoning, content and calls of a whole text. Raises ValueError."""
        message = evaluate(self.spec, text)
        if not isinstance(message, dict):
            raise ValueError("no message found")
        reasoning = next((message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str)), "")
        content = message.get("content")
        calls = [read_call(call) for call in message.get("tool_calls") or ()]
        return reasoning if reasoning.strip() else "", content if isinstance(content, str) else "", calls

    def _around(self) -> dict[str, Around | None]:
        return {
            name: around(node["x-regex"]) if isinstance(node, dict) and set(node) <= {"type", "x-regex"} else None
            for name, node in self._texts.items()
            if not isinstance(node, dict) or "x-regex" in node
        }

    def _build_regions(self) -> bool:
        """Whether every field stands between literals, so that the regions are all there is."""
        found = self._around()
        if "x-regex" in self.spec or "x-parser" in self.spec or len(found) < len(self._texts):
            return False
        if self._calls is not None:
            pattern = self._calls.get("x-regex-iterator") if isinstance(self._calls, dict) else None
            literals = ends(pattern) if pattern is not None and "x-regex" not in self._calls else None
            if literals is None:
                return False
            self._openings.append(literals[0])
        for name, place in found.items():
            if place is None or (name in REASONING_FIELDS and not (place.opening and place.endings)):
                return False
            self._openings += [place.opening] if place.opening and not (name == "content" and place.optional) else []
        for name, place in found.items():
            assert place is not None
            self._add_text(name, place)
        if self._calls is not None and literals is not None:
            blank = any(
                blank and text == literals[0] for place in found.values() if place for blank, text in place.endings
            )
            opening = Delimiter.blank_then([literals[0]]) if blank else Delimiter.of_literals([literals[0]])
            self._regions.append(Region("tool_calls", opening, Delimiter.of_literals([literals[1]])))
            self._fields["tool_calls"] = CallField(self._read_calls)
        return sum(region.opening is None for region in self._regions) <= 1

    def _add_text(self, name: str, place: Around) -> None:
        is_implicit = name == "content" and place.optional
        # an ending that begins another region is left to it
        shared = [text for _, text in place.endings if any(opening.startswith(text) for opening in self._openings)]
        own = [text for _, text in place.endings if text not in shared]
        closing = None
        if is_implicit:
            closing = Delimiter.of_literals(own) if own else None
        elif place.endings:
            closing = Delimiter.of_literals(own, left=shared)
        opening = None if is_implicit else Delimiter.of_literals([place.opening])
        self._regions.append(Region(name, opening, closing))
        self._fields[name] = TextField(name in REASONING_FIELDS, lstrip=place.blank_before or name in REASONING_FIELDS)

    def _read_calls(self, text: CallText) -> list[Call]:
        calls = [read_call(call) for call in evaluate(self._calls, text.whole) or ()]
        if not calls or any(call.arguments is None and _says_more(text.whole, call.name) for call in calls):
            raise ValueError("no call found")
        return calls


def _without_required(node: Any) -> Any:
    """``node`` for a call without arguments: patterns that look for some find nothing then."""
    if not isinstance(node, dict):
        return node
    relaxed = {key: value for key, value in node.items() if key != "required"}
    if "properties" in node:
        relaxed["properties"] = {name: _without_required(child) for name, child in node["properties"].items()}
    if "items" in node:
        relaxed["items"] = _without_required(node["items"])
    return relaxed


def _says_more(text: str, name: str) -> bool:
    """Whether there is more behind the name of a call than marks."""
    return bool(_MARKS.sub("", text.partition(name)[2]))
