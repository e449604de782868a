"""The fields of a request, before they are converted: other servers' names for ours, mistyped ones, and those that
nothing here reads, of which the client is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain, islice
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args, get_origin
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import fields as fields_of

from llamafast.api.record import Record
from llamafast.api.schema.foreign import CHANGING, WHOSE, Foreign
from llamafast.errors import InvalidRequest, UnknownParameter, UnsupportedParameter

log = logging.getLogger(__name__)

# What a field says nothing by.
EMPTY: tuple[object, ...] = (None, "", [], {})
NOTHING: tuple[object, ...] = (*EMPTY, False)
# Names that a client is told, that the log tells of once, that are looked at for a mistake, and at all for being told.
MAX_TOLD, MAX_WARNED, MAX_COMPARED, MAX_READ = 8, 256, 8, 1024
# Of shorter names nobody can say what was meant; in the middle ones one letter may be wrong, in longer ones two.
_LEAST, _LONG, _LONGEST = 4, 6, 64
RID = "rid"
# Others are told by their beginning, with what no header may have as %XX.
_SANE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ODD_CHARS = 16
# Of a tool that is a function, by where its fields stand: a template may read more, so that others are no mistake.
_FUNCTION = frozenset({"name", "description", "parameters", "strict"})
_FLAT_FUNCTION = _FUNCTION | {"type"}
_NOT_RENAMED: Mapping[str, str] = MappingProxyType({})
# Names of one thing in a request, each with what is said by it.
Twins: TypeAlias = Mapping[str, object]

_warned: set[str] = set()


class Shape(NamedTuple):
    """The fields of a request's type, and those of the objects in it."""

    names: frozenset[str]
    inner: tuple[tuple[str, Shape], ...]


def says_nothing(value: object) -> bool:
    return any(value is nothing or (value == nothing and type(value) is type(nothing)) for nothing in NOTHING)


@cache
def shape_of(kind: type[Struct]) -> Shape:
    """Of objects in lists nothing is said here: they are whole, or refused, or a model's template may read more."""
    inner = [
        (field.encode_name, shape_of(option))
        for field in fields_of(kind)
        for option in _options(field.type)
        if isinstance(option, type) and issubclass(option, Struct)
    ]
    return Shape(frozenset(field.encode_name for field in fields_of(kind)), tuple(inner))


def read_fields(tree: object, kind: Any, record: Record) -> tuple[object, Mapping[str, str]]:
    """``tree`` with our own names for what it says, and what it called these. What the Struct ``kind`` does not read is
    noted in ``record``.

    A type may be ``lenient``, as its API has it that unknown fields are passed over: then nothing is renamed or
    refused. Raises UnknownParameter for a name that is nearly one of the fields, and for any where the config says so;
    UnsupportedParameter for a field of another server that would change the answer; InvalidRequest for one that is
    said twice.
    """
    if not isinstance(tree, dict):
        return tree, _NOT_RENAMED
    shape = shape_of(kind)
    if RID in tree and RID not in record.read_in_front:
        tree = _read_rid(tree, record)
    lenient = getattr(kind, "lenient", False)
    if record.unknown_fields != "ignore" and not lenient:
        _check_meant((), _in_functions(tree), _FUNCTION)
    inside = list(_inside(tree, shape, ""))
    if not inside and tree.keys() <= shape.names:
        return tree, _NOT_RENAMED
    unknown = [name for name in tree if name not in shape.names and name not in record.read_in_front]
    renamed: dict[str, str] = {}
    if not lenient and hasattr(kind, "foreign"):  # a request for an answer
        tree = _read_foreign(tree, [name for name in unknown if name in CHANGING], shape.names, renamed)
        unknown = [name for name in unknown if name in tree and not _is_idle(name, tree[name])]
    if record.unknown_fields != "ignore" and (unknown or inside):
        if not lenient:
            _check_meant(unknown, inside, shape.names)
        unread = [*unknown, *(path for path, _, _ in inside)]
        if record.unknown_fields == "refuse" and not lenient:
            raise UnknownParameter(f"`{unread[0][:64]}` is no field of this endpoint", param=unread[0][:64])
        _tell(unread, record)
    return tree, renamed


def _read_rid(tree: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """``tree`` without SGLang's name for the request, which it has from here on. Raises InvalidRequest."""
    rest = {name: value for name, value in tree.items() if name != RID}
    if (rid := tree[RID]) is not None:
        note_rid(rid, record)
    return rest


def note_rid(rid: object, record: Record) -> None:
    """Call the request so; where its header has another name for it the client is told. Raises InvalidRequest."""
    record.identity = record.identity.renamed(rid)
    if record.identity.request_id.decode() != rid and record.unknown_fields != "ignore":
        _tell([RID], record, "its header x-request-id says something else")


def _is_idle(name: str, value: object) -> bool:
    """Whether a field of another server asks for nothing, or for what is so here anyway."""
    return name in WHOSE and (says_nothing(value) or (name in CHANGING and value in CHANGING[name].idle))


def _options(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if isinstance(kind, type) or get_origin(kind) in (list, dict, tuple):
        yield kind
    else:
        for option in get_args(kind):
            yield from _options(option)


def _inside(tree: Mapping[str, Any], shape: Shape, path: str) -> Iterator[tuple[str, str, frozenset[str]]]:
    """The path and the name of every field that an object in ``tree`` does not have, and the fields that it has."""
    for name, inner in shape.inner:
        if isinstance(value := tree.get(name), dict):
            where = f"{path}{name}."
            if not value.keys() <= inner.names:
                yield from ((f"{where}{field}", field, inner.names) for field in value if field not in inner.names)
            if inner.inner:
                yield from _inside(value, inner, where)


def _in_functions(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """The same of what functions do not have, in OpenAI's three forms of them."""
    for key in ("tools", "functions"):
        for i, tool in enumerate(tools if isinstance(tools := tree.get(key), list) else ()):
            if not isinstance(tool, dict) or tool.get("type", "function") != "function":
                continue
            inner, path, names = tool.get("function"), f"{key}[{i}]", _FLAT_FUNCTION
            if isinstance(inner, dict):
                tool, path, names = inner, f"{path}.function", _FUNCTION
            if not tool.keys() <= names:
                yield from ((f"{path}.{field}", field, names) for field in tool if field not in names)


def _read_foreign(
    tree: dict[str, Any], names: Sequence[str], known: frozenset[str], renamed: dict[str, str]
) -> dict[str, Any]:
    """``tree`` without those of ``names`` that are fields here by another name, or translated; ``renamed`` says what
    they were called."""
    tree = dict(tree) if names else tree
    for name in names:
        one, value = CHANGING[name], tree[name]
        said = _said(one, value, known)
        if said is None:
            if one.instead and not says_nothing(value) and value not in one.idle:
                raise UnsupportedParameter(
                    f"`{name[:64]}` is no field of this endpoint; send {one.instead}", param=name
                )
            continue
        del tree[name]
        for ours, meant in said.items():
            if tree.get(ours) not in (*EMPTY, meant):
                raise InvalidRequest(f"`{name}` says something else than `{renamed.get(ours, ours)}`", param=name)
            tree[ours] = meant
            renamed[ours] = name
    return tree


def _said(one: Foreign, value: Any, known: frozenset[str]) -> dict[str, Any] | None:
    """What it says in fields of this endpoint; None where that cannot be said."""
    if value is None or value in one.idle or (one.same and value in EMPTY):
        return {}
    if ours := next((name for name in one.same if name in known), None):
        return {ours: value}
    said = None if one.translated is None else one.translated(value)
    return said if said is not None and said.keys() <= known else None


def check_twins(tree: object, groups: Iterable[Twins], renamed: Mapping[str, str]) -> None:
    """Raises InvalidRequest where ``tree``, of which ``groups`` were read, says two things of one."""
    for twins in groups:
        said = [
            (renamed.get(name, name), value)
            for name, value in twins.items()
            if value not in EMPTY and isinstance(tree, dict) and name.partition(".")[0] in tree
        ]
        for name, value in said[1:]:
            if value != said[0][1]:
                raise InvalidRequest(f"`{name}` says something else than `{said[0][0]}`", param=name)


def _check_meant(
    unknown: Iterable[str], inside: Iterable[tuple[str, str, frozenset[str]]], names: frozenset[str]
) -> None:
    """Raises UnknownParameter for the first that is nearly the name of a field."""
    places = chain(((name, name, names) for name in unknown if name not in WHOSE), inside)
    for path, name, fields in islice(places, MAX_COMPARED):
        if (meant := nearest(name, fields)) is not None:
            raise UnknownParameter(f"`{path}`: did you mean `{meant}`?", param=path)


def nearest(name: str, names: frozenset[str]) -> str | None:
    """Which of ``names`` was meant: by at most two letters that are wrong, missing, too many or the wrong way round, in
    a short name one."""
    # looked at first: what is remembered are names, and clients choose how long these are
    return _nearest(name, names) if _LEAST <= len(name) <= _LONGEST else None


@lru_cache(1024)
def _nearest(name: str, names: frozenset[str]) -> str | None:
    most, written = 1 if len(name) < _LONG else 2, name.lower()
    found = [
        (distance, one)
        for one in names
        if len(one) >= _LEAST
        and abs(len(one) - len(name)) <= most
        and len(set(one) ^ set(written)) <= 2 * most
        and (distance := _distance(written, one)) <= (most if len(one) >= _LONG else 1)
    ]
    return min(found)[1] if found else None


def _distance(a: str, b: str) -> int:
    """Damerau and Levenshtein's, of which no letter is edited twice (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(b, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (char != other))
            if i > 1 and j > 1 and char == b[j - 2] and a[i - 2] == other:
                least = min(least, earlier[j - 2] + 1)
            row.append(least)
    return row[-1]


def note(unread: Sequence[str], record: Record) -> None:
    """Tell whose request it is that the model's template does not read these fields, and whoever runs the server, of
    each name once."""
    if unread and record.unknown_fields != "ignore":
        _tell(unread, record, "the model's chat template does not read it")


def _tell(unread: Sequence[str], record: Record, why: str = "") -> None:
    told = [name if _SANE.fullmatch(name) else _spelled(name) for name in unread[:MAX_READ]]
    record.ignored = (*record.ignored, *told)[:MAX_TOLD]
    for name in told:
        if len(_warned) >= MAX_WARNED:
            break
        if name not in _warned:
            _warned.add(name)
            reason = why or f"nothing here reads it{f' ({WHOSE[name]})' if name in WHOSE else ''}"
            log.warning("fields   `%s` of a request: %s; the answer is made without it", name, reason)


def _spelled(name: str) -> str:
    return quote(name[:_ODD_CHARS], safe="", errors="replace") or '""'
