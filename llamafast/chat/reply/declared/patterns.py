"""What stands before and behind the text that a regular expression captures, as literals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_MAX_LITERALS = 64


class Around(NamedTuple):
    """``header`` is what the prompt may have written of the turn, ``opening`` what stands right before the text.

    ``optional``: whether the text may begin without it. ``blank_before``: white space in front belongs to no text.
    ``endings`` are the literals that may follow, each with whether white space before it belongs to no text.
    """

    header: str
    opening: str
    optional: bool
    blank_before: bool
    endings: tuple[tuple[bool, str], ...]


def around(pattern: str) -> Around | None:
    """For a pattern whose one group takes any text; None where this cannot be told."""
    nodes = list(_parser.parse(pattern))
    groups = [i for i, node in enumerate(nodes) if node[0] is op.SUBPATTERN and node[1][0] is not None]
    if len(groups) != 1 or not _is_any_text(nodes[groups[0]][1][3]):
        return None
    before, behind = nodes[: groups[0]], nodes[groups[0] + 1 :]
    if before and before[0][0] is op.AT:
        before = before[1:]
    endings = _endings(behind)
    if endings is None:
        return None
    header = _optional_literal(before[0]) if before else None
    opening = _trailing_literal(before)
    last = _optional_literal(before[-1]) if before and not opening else None
    blank = bool(before) and _ends_blank(before)
    is_optional = not opening
    if last is not None and not (last == header and len(before) == 1):
        opening = last
    return Around(header or "", opening, is_optional, blank, tuple(endings))


def ends(pattern: str) -> tuple[str, str] | None:
    """The literals that every match of ``pattern`` begins and ends with; None where there are none."""
    nodes = _flat(_parser.parse(pattern))
    begin = _leading_literal(nodes)
    end = _trailing_literal(nodes)
    return (begin, end) if begin and end and len(begin) < len(nodes) else None


def _flat(nodes: Sequence[Any]) -> list[Any]:
    """The nodes without the brackets of groups."""
    flat = []
    for node in nodes:
        flat += _flat(node[1][3]) if node[0] is op.SUBPATTERN else [node]
    return flat


def _is_any_text(nodes: Sequence[Any]) -> bool:
    if len(nodes) != 1 or nodes[0][0] not in (op.MIN_REPEAT, op.MAX_REPEAT):
        return False
    low, high, repeated = nodes[0][1]
    return low <= 1 and high is op.MAXREPEAT and len(repeated) == 1 and repeated[0][0] is op.ANY


def _leading_literal(nodes: Sequence[Any]) -> str:
    text = ""
    for kind, value in nodes:
        if kind is not op.LITERAL:
            break
        text += chr(value)
    return text


def _trailing_literal(nodes: Sequence[Any]) -> str:
    return _leading_literal(list(reversed(nodes)))[::-1]


def _optional_literal(node: Any) -> str | None:
    """``(?:literal)?``"""
    if node[0] is not op.MAX_REPEAT or node[1][:2] != (0, 1):
        return None
    nodes = _flat(node[1][2])
    text = _leading_literal(nodes)
    return text if text and len(text) == len(nodes) else None


def _ends_blank(nodes: Sequence[Any]) -> bool:
    """Whether the last thing is ``\\s*``, maybe in an optional group."""
    kind, value = nodes[-1]
    if kind not in (op.MAX_REPEAT, op.MIN_REPEAT):
        return False
    inner = _flat(value[2])
    return _is_blank(inner) if len(inner) == 1 else _ends_blank(inner)


def _is_blank(nodes: Sequence[Any]) -> bool:
    return list(nodes) == [(op.IN, [(op.CATEGORY, op.CATEGORY_SPACE)])]


def _endings(nodes: Sequence[Any]) -> list[tuple[bool, str]] | None:
    try:
        return [(blank, text) for blank, text in _texts(nodes) if text]
    except LookupError:
        return None


def _texts(nodes: Sequence[Any]) -> list[tuple[bool, str]]:
    """Every text that ``nodes`` match. Raises LookupError where they are not finitely many literals."""
    options = [list(_node_texts(node)) for node in nodes]
    found: list[tuple[bool, str]] = []
    for combination in product(*options):
        if len(found) == _MAX_LITERALS:
            raise LookupError
        blanks = [i for i, (blank, _) in enumerate(combination) if blank]
        if any("".join(text for _, text in combination[:i]) for i in blanks):
            raise LookupError  # white space in the middle
        found.append((bool(blanks), "".join(text for _, text in combination)))
    return found


def _node_texts(node: Any) -> Iterator[tuple[bool, str]]:
    kind, value = node
    if kind is op.LITERAL:
        yield False, chr(value)
    elif kind is op.AT and value in (op.AT_END, op.AT_END_STRING):
        yield False, ""
    elif kind is op.SUBPATTERN:
        yield from _texts(value[3])
    elif kind is op.ASSERT and value[0] == 1:
        yield from _texts(value[1])
    elif kind is op.BRANCH:
        for branch in value[1]:
            yield from _texts(branch)
    elif kind is op.IN and all(inner[0] is op.LITERAL for inner in value):
        for _, code in value:
            yield False, chr(code)
    elif kind in (op.MAX_REPEAT, op.MIN_REPEAT) and _is_blank(value[2]):
        yield True, ""
    else:
        raise LookupError
