"""Pictures and sounds that tests make, and prompts with their rows as the core takes them."""

from __future__ import annotations

import io
import math
import wave
from array import array
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from llamafast._core.model import Model
from llamafast._core.mtmd import Chunks, Projector
from llamafast._core.spans import Span
from llamafast._core.vocab import Vocab
from llamafast.chat.prompt.media import row_ids

MARKER = "<__media__>"
RATE = 16_000

Pixels = tuple[int, int, bytes]
Medium = Pixels | array  # a picture as (width, height, RGB), or samples


class MediaPrompt(NamedTuple):
    """``rows`` are those of each span, one behind the other."""

    tokens: array[int]
    spans: tuple[Span, ...]
    rows: list[np.ndarray]


def pixels(width: int, height: int, seed: int) -> Pixels:
    return width, height, _pattern(width, height, seed).tobytes()


def png(width: int, height: int, seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pattern(width, height, seed)).save(file, "PNG")
    return file.getvalue()


def tone(seconds: float, hertz: float) -> array[float]:
    return array("f", [0.3 * math.sin(2 * math.pi * hertz * i / RATE) for i in range(int(seconds * RATE))])


def wav(seconds: float, hertz: float) -> bytes:
    return wav_of(array("h", [int(32767 * sample) for sample in tone(seconds, hertz)]).tobytes())


def wav_of(pcm16: bytes, rate: int = RATE) -> bytes:
    """The file of samples of one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(pcm16)
    return file.getvalue()


def projector(model: Model, path: Path) -> Projector:
    return Projector(model, str(path), n_threads=1, batch_max_tokens=1024)


def media_prompt(vocab: Vocab, encoder: Projector, text: str, media: list[Medium]) -> MediaPrompt:
    """``text``, in which each MARKER stands for the next of ``media``, and what ``encoder`` makes of these."""
    tokens, spans, rows = array("i"), [], []
    for i, piece in enumerate(text.split(MARKER)):
        if piece:
            tokens += vocab.tokenize(piece, add_special=False, parse_special=True)
        if i < len(media):
            chunks = chunks_of(encoder, media[i])
            digest = sha256(media[i].tobytes() if isinstance(media[i], array) else media[i][2]).digest()
            for j in range(len(chunks)):
                own = chunks.tokens(j)
                if own is not None:
                    tokens.frombytes(own)
                    continue
                span = Span(len(tokens), *chunks.span(j))
                n_rows = chunks.span(j)[0]
                values = np.empty((n_rows, encoder.width), np.float32)
                chunks.encode(j, values)
                tokens += row_ids(digest, j, n_rows)
                spans.append(span)
                rows.append(values.reshape(-1))
    return MediaPrompt(tokens, tuple(spans), rows)


def chunks_of(encoder: Projector, medium: Medium) -> Chunks:
    return encoder.audio(len(medium), medium) if isinstance(medium, array) else encoder.image(*medium)


def _pattern(width: int, height: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 3 + seed * 40) % 256, (y * 3) % 256, ((x ^ y) * 2 + seed) % 256], -1).astype(np.uint8)
