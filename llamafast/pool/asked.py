"""What the parent reads of a body before it passes it on: whose model is asked for, and for how long it should stay."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import msgspec

from llamafast.api.cut_body import cut
from llamafast.api.decode import invalid_field
from llamafast.api.form import read_form
from llamafast.api.transcription.schema import LISTS
from llamafast.errors import InvalidRequest

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ms|h|m|s))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)", re.ASCII)
# Of a text that says how long: a pattern that repeats keeps something for each time it does.
MAX_CHARS = 64
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Asked(msgspec.Struct):
    """``keep_alive`` is Ollama's, seconds or a text as 5m; ``ttl`` LM Studio's, seconds; ``rid`` SGLang's, the
    request's id. ``lora_name`` is of an adapter to be loaded or unloaded."""

    model: str | None = None
    stream: bool | None = None
    keep_alive: float | str | None = None
    ttl: float | None = None
    lora_name: str | None = None
    rid: str | None = None

    @property
    def ttl_seconds(self) -> float | None:
        """How long the model should stay afterwards, below 0 for ever; None: nothing is said. Raises InvalidRequest,
        also where two times are said."""
        kept = seconds(self.keep_alive) if isinstance(self.keep_alive, str) else self.keep_alive
        if self.ttl is None or kept is None:
            return kept if self.ttl is None else self.ttl
        if kept != self.ttl and (kept >= 0 or self.ttl >= 0):
            raise InvalidRequest("`ttl` says something else than `keep_alive`", param="ttl")
        return self.ttl


_DECODER = msgspec.json.Decoder(Asked)


def asked_in(body: bytes) -> Asked:
    """Raises InvalidRequest for what is no JSON, or a field of the wrong type. A list has no fields."""
    parts = cut(body)
    rest = body if parts is None else parts.rest
    try:
        return _DECODER.decode(rest)
    except msgspec.ValidationError as error:
        if "- at `$" not in str(error):
            return Asked()
        raise invalid_field(str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


def asked_in_form(body: bytes, content_type: bytes) -> Asked:
    """The same of a form, whose values are texts whatever they mean. Raises InvalidRequest for what is none."""
    fields = read_form(body, content_type, LISTS).fields
    try:
        asked = msgspec.convert(
            {name: fields[name] for name in Asked.__struct_fields__ if name in fields}, Asked, strict=False
        )
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from error
    if isinstance(asked.keep_alive, str):
        with suppress(ValueError):
            asked.keep_alive = float(asked.keep_alive)
    for name, value in (("ttl", asked.ttl), ("keep_alive", asked.keep_alive)):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"`{name}`: expected seconds", param=name)
    return asked


def seconds(text: str) -> float:
    """Raises InvalidRequest."""
    if len(text) > MAX_CHARS or not _DURATION.fullmatch(text):
        raise InvalidRequest("`keep_alive`: expected seconds, or a text as 5m or 1h30m", param="keep_alive")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return -total if text.startswith("-") else total
