"""The served models as Anthropic's clients read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from llamafast.api.messages import schema
from llamafast.errors import InvalidRequest

_DEFAULT_PAGE, _LONGEST_PAGE = 20, 1000


class Served(NamedTuple):
    """What is known of a model; its length in tokens where it is loaded."""

    id: str
    created: int
    max_model_len: int | None


def model_told(model: Served) -> schema.Model:
    created = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    length = model.max_model_len
    return schema.Model(
        id=model.id, display_name=model.id, created_at=created, max_input_tokens=length, max_tokens=length
    )


def model_page(models: Sequence[Served], query: Mapping[str, str]) -> schema.ModelPage:
    """As many as ``limit`` of the models behind ``after_id``, or before ``before_id``. Raises InvalidRequest."""
    limit = query.get("limit", str(_DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= _LONGEST_PAGE):
        raise InvalidRequest(f"`limit` must be a number from 1 to {_LONGEST_PAGE}", param="limit")
    rest = list(models)
    if after := query.get("after_id"):
        rest = rest[_place(models, after, "after_id") + 1 :]
    if before := query.get("before_id"):
        rest = rest[: max(0, _place(models, before, "before_id") - len(models) + len(rest))]
        page = rest[-int(limit) :]
    else:
        page = rest[: int(limit)]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    told = [model_told(model) for model in page]
    return schema.ModelPage(data=told, has_more=len(rest) > len(page), first_id=first, last_id=last)


def _place(models: Sequence[Served], name: str, field: str) -> int:
    for i, model in enumerate(models):
        if model.id == name:
            return i
    raise InvalidRequest(f"`{field}`: there is no model {name[:128]!r}", param=field)
