"""Media in a conversation: parts of messages that are no text, and the rows that stand for them in a prompt.

A part goes through templates, checks and logs as a word that no client can know (``control.media_word``), so no
template needs to know of media, and megabytes of base64 are walked once. In the rendered text each word has to be there
once and in order; there the chunks of the medium are put between the tokens of the text.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from llamafast.chat.prompt.control import ControlTokens
from llamafast.chat.request import Message
from llamafast.engine.media import MediaKind, MediaRows, MediaSource, MediaSpan, Medium
from llamafast.engine.types import Tokenizer
from llamafast.errors import InvalidMedia, InvalidRequest, UnsupportedParameter

# Parts by their types, as OpenAI's APIs, Anthropic's, vLLM and llama-server name them: their kind, and the fields that
# may hold the medium.
_PARTS: dict[str, tuple[MediaKind, tuple[str, ...]]] = {
    "image_url": ("image", ("image_url",)),
    "input_image": ("image", ("image_url",)),
    "image": ("image", ("image_url", "url", "source", "image")),
    "audio_url": ("audio", ("audio_url",)),
    "input_audio": ("audio", ("input_audio", "audio_url")),
    "video_url": ("video", ("video_url",)),
    "input_video": ("video", ("input_video", "video_url")),
    "video": ("video", ("video", "video_url", "url")),
}
MEDIA_PARTS = frozenset(_PARTS)
_FILES = frozenset({"file", "input_file"})
_DETAILS = frozenset({"low", "high", "auto", "original"})

# An id of a row has 30 bits of a digest. Of so few rows another medium with the same ids could be searched for: theirs
# are drawn, and never met again.
_LEAST_ROWS = 5
_IDS = (1 << 30) - 1
# Ids that one digest gives.
_IDS_A_DIGEST = 8
# Ends of media at which a state that cannot be cut is kept: the last ones of a prompt.
_CHECKPOINTS = 4


def takes(modalities: Sequence[MediaKind]) -> str:
    """What a model of these ``modalities`` takes, as errors say it."""
    if modalities:
        return f"this model takes {' and '.join(modalities)} beside text"
    return "this model takes text only: model.mtmd is not configured"


def refusal(kind: str, path: str, modalities: Sequence[MediaKind] = ()) -> UnsupportedParameter:
    """What a part of this type is answered with that is neither text nor of ``modalities``; ``path`` leads to it."""
    if kind in _PARTS and modalities:
        message = f"{path}: {takes(modalities)}, and no {_PARTS[kind][0]}"
    elif kind in _PARTS:
        message = f"{path}: {takes(())}"
    elif kind in _FILES:
        message = f"{path}: files are not kept here; send an image as a data URL"
    else:
        message = f"{path}: content of type {kind[:64]!r} is not supported yet"
    return UnsupportedParameter(message, param=f"{path}.type")


class MediaParts:
    """Collects the media of one request, and gives words for them."""

    def __init__(self, modalities: Sequence[MediaKind], word: Callable[[int], str]) -> None:
        self.sources: list[MediaSource] = []
        self._modalities = modalities
        self._word = word

    def word(self, part: Any, path: str) -> str | None:
        """A word for ``part`` of a message; None for what is no medium. Raises UnsupportedParameter for one that the
        model does not take, InvalidRequest for one that is not well formed."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            return None
        if _PARTS[kind][0] not in self._modalities:
            raise refusal(kind, path, self._modalities)
        return self.add(_source(part, kind, path))

    def add(self, source: MediaSource) -> str:
        self.sources.append(source)
        return self._word(len(self.sources) - 1)

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """Chat messages with text in place of media. Raises as ``word``."""
        return [self._message(message, f"messages[{i}].content") for i, message in enumerate(messages)]

    def _message(self, message: Message, path: str) -> Message:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        words = [self.word(part, f"{path}[{j}]") for j, part in enumerate(content)]
        if all(word is None for word in words):
            return message
        parts = [
            part if word is None else {"type": "text", "text": word} for part, word in zip(content, words, strict=True)
        ]
        return {**message, "content": parts}


def _source(part: Mapping[str, Any], kind: str, path: str) -> MediaSource:
    media_kind, fields = _PARTS[kind]
    if part.get("file_id") is not None:
        raise UnsupportedParameter(
            f"{path}: files are not kept here; send an image as a data URL", param=f"{path}.file_id"
        )
    field = next((name for name in fields if part.get(name) is not None), None)
    if field is None:
        raise InvalidRequest(f"`{path}.{fields[0]}` is required", param=f"{path}.{fields[0]}")
    where = f"{path}.{field}"
    value: Any = part[field]
    inner: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    for name in ("uuid", "format"):
        for given in (part, inner):
            if not isinstance(given.get(name), str | None):
                raise InvalidRequest(f"`{path}.{name}` must be a string", param=f"{path}.{name}")
    detail = inner.get("detail", part.get("detail"))
    if detail is not None and not (isinstance(detail, str) and detail in _DETAILS):
        raise InvalidRequest(f"`{where}.detail` must be one of {', '.join(sorted(_DETAILS))}", param=f"{where}.detail")
    text = value
    for name in ("url", "data") if inner else ():
        if inner.get(name) is not None:
            text, where = inner[name], f"{where}.{name}"
            break
    if not isinstance(text, str):
        raise InvalidRequest(f"`{where}` must be a string, a URL or base64", param=where)
    scheme = text[:16].partition(":")[0] if ":" in text[:16] else ""
    return MediaSource(kind=media_kind, text=text, path=where, is_url=bool(scheme), low_detail=detail == "low")


class Spliced(NamedTuple):
    """A prompt's tokens with the chunks of its media among them, and where the rows of these lie. ``text`` are the
    tokens without; ``places`` says before which of them a medium lies, and how many tokens it has."""

    tokens: array[int]
    spans: tuple[MediaSpan, ...]
    text: array[int]
    places: tuple[tuple[int, int], ...]

    def with_media(self, n: int) -> int:
        """How many tokens the first ``n`` tokens of the text are, with the media between them."""
        return n + sum(size for place, size in self.places if place < n)

    def checkpoints(self) -> list[int]:
        """The ends of the last runs of media."""
        ends: dict[int, int] = {}
        for at, _ in self.places:
            ends[at] = at + sum(size for place, size in self.places if place <= at)
        return list(ends.values())[-_CHECKPOINTS:]


def splice(text: str, media: Sequence[Medium], control: ControlTokens, tokenizer: Tokenizer) -> Spliced:
    """The tokens of rendered ``text``, ``media`` in place of their words."""
    if not media:
        tokens = control.tokenize(text, tokenizer)
        return Spliced(tokens, (), tokens, ())
    tokens, plain = array("i"), array("i")
    spans: list[MediaSpan] = []
    places: list[tuple[int, int]] = []
    pieces, order = control.cut_at_media(text)
    for i, piece in enumerate(pieces):
        if piece:
            own = control.tokenize(piece, tokenizer)
            tokens += own
            plain += own
        if i < len(order):
            start = len(tokens)
            for j, chunk in enumerate(media[order[i]].chunks):
                if isinstance(chunk, MediaRows):
                    spans.append(MediaSpan(len(tokens), media[order[i]], j))
                    tokens += row_ids(media[order[i]].digest, j, chunk.n_rows)
                else:
                    tokens += chunk
            places.append((len(plain), len(tokens) - start))
    return Spliced(tokens, tuple(spans), plain, tuple(places))


def check_words(text: str, messages: Sequence[Message], sources: Sequence[MediaSource], control: ControlTokens) -> None:
    """Raises InvalidMedia where rendered ``text`` lacks a medium of ``messages``, or has them in another order."""
    if not sources:
        return
    wanted = [i for message in messages for said in _texts(message) for i in control.cut_at_media(said)[1]]
    _, order = control.cut_at_media(text)
    lost = next((i for i in wanted if order.count(i) != 1), None)
    if lost is not None:
        raise InvalidMedia("the chat template does not print this medium, or not once", param=sources[lost].path)
    if order != wanted:
        first = (wanted or order)[0]
        raise InvalidMedia("the chat template brings media out of their order", param=sources[first].path)


def _texts(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, list):
        return [part["text"] for part in content if isinstance(part.get("text"), str)]
    return [content] if isinstance(content, str) else []


def row_ids(digest: bytes, chunk: int, n_rows: int) -> array[int]:
    """What stands for the rows of a chunk among a prompt's tokens, as the core's spans.pxd has them: below -1, the
    first even and the others odd, and otherwise 30 bits a row of SHA-256 of the medium's digest, the chunk and the
    row."""
    if n_rows < _LEAST_ROWS:
        bits = [secrets.randbelow(_IDS) for _ in range(n_rows)]
    else:
        words = array("I")
        for block in range(-(-n_rows // _IDS_A_DIGEST)):
            words.frombytes(sha256(digest + chunk.to_bytes(8, "little") + block.to_bytes(8, "little")).digest())
        bits = [word % _IDS for word in words[:n_rows]]
    return array("i", (-2 - 2 * word - (k > 0) for k, word in enumerate(bits)))
