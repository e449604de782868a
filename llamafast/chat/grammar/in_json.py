"""A Lark grammar of texts → the grammar of the same texts inside of a JSON string.

Each character has one spelling there: itself, or an escape. A terminal that holds characters of both kinds becomes a
rule, in which escapes are terminals of their own: where one terminal goes on with an escape and the next begins with
one, a lexer that sees a single byte ahead could not tell them apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from llamafast.chat.grammar.compiler import Uncompilable, acceptor
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Different sets of characters in one grammar: what is in each is found out by trying, in a millisecond.
MAX_SETS = 500

_ESCAPED = '"\\' + "".join(map(chr, range(0x20)))
_ESCAPED_SET = r'["\\\x00-\x1f]'

# Client text: each character is looked at a bounded number of times, so every repetition is possessive, and what is not
# closed is taken whole.
_SOURCE = re.compile(
    r"""
      (?P<comment> (?: // | \# ) [^\n]*+ )
    | "(?P<low> (?:\\.|[^"\\])++ )" \s*+ \.\. \s*+ "(?P<high> (?:\\.|[^"\\])++ )"
    | "(?P<string> (?:\\.|[^"\\])*+ )" (?P<folded> i? )
    | /(?P<regex> (?:\\.|[^/\\])++ )/ (?P<flags> [a-z]*+ )
    | (?P<unclosed> "(?:\\.|[^"\\])*+\\?\Z | /(?:\\.|[^/\\])*+\\?\Z )
    | %import \s++ common\. (?P<imported> [A-Z_]++ ) (?: [ \t]*+ -> [ \t]*+ (?P<alias> \w++ ) )?
    | (?P<refused> %\w++ | ~(?!\s*+\d) | & | <[^<>\s]++> | @\w++ )
    | (?P<defined> [?!]*+\w++ ) (?= \s*+: )
    | (?P<modifiers> [?!]++ )
    | (?P<terminal> \b_?[A-Z][A-Z0-9_]*+\b )
    | (?P<rule> \w++ )
    """,
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(
    r"""
      (?P<group> \( (?: \?: | \?P?<\w++> )? (?!\?) )
    | (?P<kept> [)|] )
    | (?P<repeat> [*+?] | \{\d++(?:,\d*+)?\} ) \??
    | (?P<anchor> \A\^ | \$\Z )
    | (?P<unit> \\[xu]\{[^}]*+\} | \\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | \\[pP](?:\{[^}]*+\}|.) | \\[^bBAzZ<>]
        | [^\\^$(\[{] )
    | (?P<set> \[ )
    """,
    re.VERBOSE | re.DOTALL,
)
_SET_TOKEN = re.compile(r"\\.|\[\^?\]?|\]|[^\\\[\]]", re.DOTALL)
# What ends a regular expression whose last character may be repeated: the whole run is one terminal, as it is in Lark.
_TAIL = re.compile(r"[*+]\)*+\$?\Z")
# Lark's own terminals that hold characters which JSON escapes; the others are imported as they are.
_COMMON = {
    "LF": r"\n",
    "CR": r"\r",
    "NEWLINE": r"(\r?\n)+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "ESCAPED_STRING": r'"([^"\\]|\\.)*"',
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "C_COMMENT": r"\/\*([^*]|\*+[^*\/])*\*+\/",
    "SQL_COMMENT": r"--[^\n]*",
}


def quoted(lark: str) -> str:
    """Raises InvalidRequest or UnsupportedParameter where ``lark`` has no such form."""
    sets: set[str] = set()
    for match in _SOURCE.finditer(lark):
        sets.update(_sets(match))
        if len(sets) > MAX_SETS:
            raise InvalidRequest(
                f"a tool's grammar has more than {MAX_SETS} different sets of characters", param="tools"
            )
    return _Quoting(lark).text()


class _Quoting:
    def __init__(self, lark: str) -> None:
        self._lark = lark
        self._within = ""  # the name that is being defined
        self._spelled: set[str] = set()  # the names in whose definition an escape may occur
        users: dict[str, set[str]] = {}
        found: list[str] = []
        for match in _SOURCE.finditer(lark):
            name = self._enter(match)
            if match["terminal"]:
                users.setdefault(match["terminal"], set()).add(name)
            if _has_escapes(match):
                found.append(name)
        while found:  # a terminal made of such terminals is one too
            name = found.pop()
            if name not in self._spelled:
                self._spelled.add(name)
                found += users.get(name, ())

    def text(self) -> str:
        refused = [match[0] for match in _SOURCE.finditer(self._lark) if match["refused"]]
        if "~" in refused or (refused and self._spelled):
            raise _unsupported(refused[0])
        return _SOURCE.sub(self._rewritten, self._lark)

    def _enter(self, match: re.Match[str]) -> str:
        """The name that ``match`` belongs to the definition of."""
        if match["imported"]:
            return str(match["alias"] or match["imported"])
        if match["defined"]:
            self._within = match["defined"]
        return self._within

    def _rewritten(self, match: re.Match[str]) -> str:
        name = self._enter(match)
        if match["terminal"] or match["defined"]:
            return self._named(match[0])
        if match["comment"]:
            return ""
        if match["imported"]:
            regex = _COMMON.get(match["imported"])
            return match[0] if regex is None else f"{self._named(name)}: {_of_regex(regex, '')}"
        return _expression(match) if _has_escapes(match) else match[0]

    def _named(self, name: str) -> str:
        return f"quoted_{name.lower()}" if name.isupper() and name in self._spelled else name


class _Unit(NamedTuple):
    """One character of a regular expression, as sets of those that stand for themselves and of escapes; either may be
    empty."""

    plain: str
    escapes: str


def _sets(match: re.Match[str]) -> Iterator[str]:
    """The sets of characters in a range or a regular expression, each as its source."""
    if match["low"] is not None:
        yield _range(match)
    elif match["regex"] is not None:
        yield from (source for source, _, _ in _pieces(match["regex"], match["flags"]) if len(source) > 1)


def _range(match: re.Match[str]) -> str:
    return f"[{_code(_decoded(match['low']))}-{_code(_decoded(match['high']))}]"


def _has_escapes(match: re.Match[str]) -> bool:
    if match["imported"]:
        return match["imported"] in _COMMON
    return match["rule"] is None and _expression(match) != match[0]


def _expression(match: re.Match[str]) -> str:
    """A string, a range or a regular expression in its quoted form; anything else as it is."""
    if match["string"] is not None:
        text = _decoded(match["string"])
        if match["folded"]:
            return _of_units([_folded(char) for char in text], match[0])
        spelled = json.dumps(text, ensure_ascii=False)[1:-1]
        return match[0] if spelled == text else json.dumps(spelled)
    if match["low"] is not None:
        return _of_units([_unit(_range(match), "")], match[0])
    if match["regex"] is not None:
        return _of_regex(match["regex"], match["flags"])
    return match[0]


def _of_units(units: list[_Unit], unchanged: str) -> str:
    return f"({' '.join(map(_alternatives, units))})" if any(unit.escapes for unit in units) else unchanged


def _of_regex(regex: str, flags: str) -> str:
    """Also of one without escapes: that is as it is."""
    parts = list(_parts(regex, flags))
    if not any(isinstance(part, _Unit) and part.escapes for part, _ in parts):
        return f"/{regex}/{flags}"
    written = []
    for part, end in parts:
        if isinstance(part, str):
            written.append(part)
        else:
            runs = bool(part.plain and part.escapes and _TAIL.match(regex, end))
            written.append(_alternatives(part._replace(plain=f"{part.plain[:-1]}+/") if runs else part))
    return f"({' '.join(written)})".replace(" \0", "")


def _parts(regex: str, flags: str) -> Iterator[tuple[_Unit | str, int]]:
    """Units and what joins them in Lark's notation, each with its end in ``regex``; \\0 binds to what precedes it."""
    for unit, joint, end in _pieces(regex, flags):
        if unit or joint:
            yield _unit(unit, flags) if unit else joint, end


def _pieces(regex: str, flags: str) -> Iterator[tuple[str, str, int]]:
    """The sources of units, or what joins them, and where each ends."""
    at = 0
    while at < len(regex):
        match = _REGEX.match(regex, at)
        if match is None or "x" in flags:
            raise _unsupported(f"/{regex}/{flags}")
        end = _set_end(regex, at) if match["set"] else match.end()
        if match["unit"] or match["set"]:
            yield regex[at:end], "", end
        elif not match["anchor"]:
            yield "", "(" if match["group"] else match["kept"] or f"\0{match['repeat']}", end
        at = end


def _set_end(regex: str, at: int) -> int:
    """The end of the set of characters that begins at ``at``; sets may be nested."""
    depth = 0
    for token in _SET_TOKEN.finditer(regex, at):
        depth += (token[0][0] == "[") - (token[0] == "]")
        if not depth:
            return token.end()
    return len(regex)


def _folded(char: str) -> _Unit:
    """A character in either case; those that JSON escapes have none."""
    return _unit(_code(char), "") if char in _ESCAPED else _Unit(f"/{_code(char)}/i", "")


@lru_cache(1024)
def _unit(source: str, flags: str) -> _Unit:
    whole = f"/{source}/{flags}"
    if len(source) == 1 and source not in _ESCAPED and source != ".":
        return _Unit(whole, "")
    try:
        takes = acceptor({"lark_grammar": f"start: {whole}"})
    except Uncompilable as error:
        raise InvalidRequest(f"{whole[:64]!r} in a tool's grammar: {error}", param="tools", told=str(error)) from error
    inside = [char for char in _ESCAPED if takes(char)]
    if not inside:
        return _Unit(whole, "")
    spelled = "|".join(re.escape(json.dumps(char)[2:-1]) for char in inside)
    is_set = source[0] == "[" or source[:2].lower() in (r"\s", r"\w", r"\d", r"\p")
    plain = f"[^{_ESCAPED_SET[1:]}" if source == "." else f"[{source}--{_ESCAPED_SET}]"
    return _Unit(f"/{plain}/{flags}" if is_set or source == "." else "", rf"/\\({spelled})/")


def _alternatives(unit: _Unit) -> str:
    return f"({unit.plain} | {unit.escapes})" if unit.plain and unit.escapes else unit.plain or unit.escapes


def _decoded(text: str) -> str:
    """What a string of Lark stands for: JSON's escapes and ``\\xHH``."""
    try:
        value: str = json.loads('"{}"'.format(re.sub(r"(?<!\\)((?:\\\\)*)\\x", r"\1\\u00", text)))
    except ValueError as error:
        raise InvalidRequest(f'"{text[:64]}" in a tool\'s grammar is not a string', param="tools") from error
    return value


def _code(char: str) -> str:
    return rf"\x{{{ord(char):x}}}" if len(char) == 1 else char


def _unsupported(what: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"{what[:64]!r} in a tool's grammar cannot be followed by this model, which writes JSON", param="tools"
    )
