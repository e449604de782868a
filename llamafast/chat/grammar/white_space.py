"""Which white space JSON answers have: one form, unless the request asks for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafast.chat.grammar.size import check_size
from llamafast.errors import InvalidRequest

# How JSON is written: as json.dumps and JSON.stringify with spaces do, in one way. What a model has no choice in costs
# no step, and one that has lost its way cannot write white space for ever.
ONE_FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
# What a person may write between the tokens of JSON: a space, or a line break and what indents the next line.
FREE_WHITESPACE = r"( |\r?\n[ \t]{0,40})?"
WHITESPACE_OPTIONS = frozenset({"whitespace_pattern", "disable_any_whitespace"})


def spacing_asked(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """How JSON is spaced, and the field that says so. vLLM's names."""
    outputs = fields.get("structured_outputs", {})
    pattern, one_form = outputs.get("whitespace_pattern"), outputs.get("disable_any_whitespace")
    source = "structured_outputs" if pattern is not None or one_form is not None else None
    if not isinstance(pattern, str | None) or not isinstance(one_form, bool | None):
        raise InvalidRequest(
            "`structured_outputs`: `whitespace_pattern` must be a string, `disable_any_whitespace` a boolean",
            param="structured_outputs",
        )
    if "guided_whitespace_pattern" in fields:
        pattern, source = fields["guided_whitespace_pattern"], "guided_whitespace_pattern"
    if pattern is not None:
        check_size(pattern, source or "")
        return {"whitespace_pattern": pattern}, source
    return {"whitespace_pattern": FREE_WHITESPACE} if one_form is False else ONE_FORM, source
