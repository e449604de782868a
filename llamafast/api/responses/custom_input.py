"""The input of a custom tool out of the arguments a model writes for it."""

from __future__ import annotations

import json
import re
from typing import Literal

INPUT = "input"

# The opening is looked for in so many characters: a model that writes something else is not searched again and again.
_OPENING_CHARS = 64
_LONGEST_ESCAPE = 12
_OPENING = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
# one unit of a JSON string: plain text, an escape, or a surrogate pair
_UNIT = re.compile(
    r'[^"\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]'
)
# what may become a surrogate pair once more text is there
_HALF_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?\Z")


class CustomInput:
    """Custom tools take free text, models write JSON: they are shown a function with one string, ``input``.

    ``feed`` gives what became certain of that string while it is written. Arguments of another form are given whole
    by ``finish``: as the only string in the object, or as they stand. The result does not depend on how the text was
    cut.
    """

    def __init__(self) -> None:
        self._pending = ""
        self._arguments: list[str] = []
        self._state: Literal["opening", "string", "closed", "other"] = "opening"

    def feed(self, text: str) -> str:
        if self._state in ("opening", "other"):
            self._arguments.append(text)
        if self._state == "opening":
            self._pending += text
            return self._decoded() if self._opened() else ""
        if self._state == "string":
            self._pending += text
            return self._decoded()
        return ""

    def finish(self) -> str:
        """What is left when the arguments are complete or cut off."""
        if self._state in ("string", "closed"):
            return ""
        arguments = "".join(self._arguments)
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        if isinstance(value, dict):
            texts = [value[INPUT]] if INPUT in value else list(value.values())
            if len(texts) == 1 and isinstance(texts[0], str):
                return texts[0]
        return value if isinstance(value, str) else arguments

    def _opened(self) -> bool:
        """Whether the string has begun; what precedes it is dropped then."""
        match = _OPENING.match(self._pending, 0, _OPENING_CHARS)
        if match is None:
            if len(self._pending) >= _OPENING_CHARS:
                self._state = "other"
            return False
        self._pending = self._pending[match.end() :]
        self._arguments.clear()
        self._state = "string"
        return True

    def _decoded(self) -> str:
        """The units that are complete."""
        at, units = 0, []
        while match := _UNIT.match(self._pending, at):
            if _HALF_PAIR.match(self._pending, at):
                break
            units.append(match[0])
            at = match.end()
        if self._pending[at : at + 1] == '"' or len(self._pending) - at >= _LONGEST_ESCAPE:
            self._state = "closed"
        self._pending = self._pending[at:]
        text: str = json.loads(f'"{"".join(units)}"', strict=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
