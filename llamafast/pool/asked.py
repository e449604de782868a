"""What the parent reads of a body before it passes it on: whose model is asked for, and for how long it should stay."""

from __future__ import annotations

import re

import msgspec

from llamafast.api.cut_body import cut
from llamafast.errors import InvalidRequest

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ms|h|m|s))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Asked(msgspec.Struct):
    """``keep_alive`` is Ollama's, seconds or a text as 5m; ``ttl`` LM Studio's, seconds. ``lora_name`` is of an adapter
    to be loaded or unloaded."""

    model: str | None = None
    stream: bool | None = None
    keep_alive: float | str | None = None
    ttl: float | None = None
    lora_name: str | None = None

    @property
    def ttl_seconds(self) -> float | None:
        """How long the model should stay afterwards, below 0 for ever; None: nothing is said. Raises InvalidRequest."""
        if self.ttl is not None:
            return self.ttl
        return seconds(self.keep_alive) if isinstance(self.keep_alive, str) else self.keep_alive


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
        raise _wrong(str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


def seconds(text: str) -> float:
    """Raises InvalidRequest."""
    if not _DURATION.fullmatch(text):
        raise InvalidRequest("`keep_alive`: expected seconds, or a text as 5m or 1h30m", param="keep_alive")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return -total if text.startswith("-") else total


def _wrong(text: str) -> InvalidRequest:
    what, _, name = text.rstrip("`").rpartition(" - at `$.")
    return InvalidRequest(f"`{name}`: {what[:1].lower()}{what[1:].replace('`', '')}", param=name)
