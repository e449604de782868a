"""Media as nobody should send them: cut, lying, bloated, of the wrong kind, or merely odd. Deterministic."""

from __future__ import annotations

import random
import struct
import wave
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image


class Hostile(NamedTuple):
    name: str
    kind: str
    data: bytes


def hostile_media(n: int) -> Iterator[Hostile]:
    """``n`` of them: what people have tried by name, then mutations of whole files."""
    rng = random.Random(5)
    named = list(_named())
    yield from named[:n]
    whole = [*_pictures(), *_sounds()]
    for i in range(max(0, n - len(named))):
        name, kind, data = whole[i % len(whole)]
        yield Hostile(f"{name} {i}", kind, _mutated(rng, data))


def _mutated(rng: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    match rng.randrange(6):
        case 0:
            return bytes(broken[: rng.randrange(len(broken))])
        case 1:
            for _ in range(rng.randrange(1, 20)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        case 2:  # what headers say
            at = rng.randrange(0, min(64, len(broken) - 4))
            broken[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), rng.randbytes(4)])
        case 3:
            at = rng.randrange(len(broken))
            broken[at:at] = rng.randbytes(rng.randrange(1, 2000))
        case 4:
            at = rng.randrange(len(broken))
            del broken[at : at + rng.randrange(1, 500)]
        case _:
            broken += rng.randbytes(5000)
    return bytes(broken)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def _png(width: int, height: int) -> bytes:
    return _saved(_noise(width, height), "PNG")


def _wav(seconds: float) -> bytes:
    """A tone."""
    samples = 10_000 * np.sin(0.2 * np.arange(round(16_000 * seconds)))
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def _pictures() -> list[Hostile]:
    image = _noise(120, 90)
    frames = [_noise(30, 30).convert("P")] * 3
    return [
        Hostile("jpeg", "image", _saved(image, "JPEG")),
        Hostile("progressive jpeg", "image", _saved(image, "JPEG", progressive=True)),
        Hostile("png", "image", _png(120, 90)),
        Hostile("webp", "image", _saved(image, "WEBP")),
        Hostile("gif", "image", _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        Hostile("bmp", "image", _saved(image, "BMP")),
        Hostile("tiff", "image", _saved(image, "TIFF")),
        Hostile("tiff, lzw", "image", _saved(image, "TIFF", compression="tiff_lzw")),
    ]


def _sounds() -> list[Hostile]:
    return [Hostile("wav", "audio", _wav(1.0)), Hostile("long wav", "audio", _wav(3.0))]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says so many pixels, and has a few."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _named() -> Iterator[Hostile]:
    image, exif = _noise(64, 48), Image.Exif()
    exif[0x0112] = 6
    pictures: dict[str, bytes] = {
        "one pixel": _png(1, 1), "a line": _png(20000, 1), "a column": _png(1, 20000),
        "upright by EXIF": _saved(image, "JPEG", exif=exif), "alpha": _saved(image.convert("RGBA"), "PNG"),
        "palette with alpha": _saved(image.convert("P"), "PNG", transparency=0),
        "16 bits": _saved(Image.fromarray(np.full((40, 40), 40_000, np.uint16)), "PNG"),
        "cmyk": _saved(image.convert("CMYK"), "JPEG"), "one bit": _saved(image.convert("1"), "PNG"),
        "floats": _saved(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"),
        "a bomb": _bomb(60_000, 60_000), "a smaller bomb": _bomb(7000, 7000), "no pixels": _bomb(0, 10),
        "empty": b"", "a byte": b"\xff", "zeros": bytes(5000), "text": b"hello", "html": b"<html></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "pdf": b"%PDF-1.7\n",
        "an icon": _saved(image, "ICO"), "sound": _wav(0.2), "zip": b"PK\x03\x04" + bytes(500),
        "brackets": b"[" * 100_000, "a fifo's name": b"/dev/zero",
    }  # fmt: skip
    for name, data in pictures.items():
        yield Hostile(name, "image", data)
    sounds: dict[str, bytes] = {
        "one sample": _wav(1 / 16000), "no sample": _wav(0), "too short": _wav(0.04), "empty": b"",
        "a picture": _png(20, 20), "a playlist": b"#EXTM3U\nfile:///etc/passwd\n", "riff": b"RIFF",
        "id3": b"ID3" + bytes(999),
        "flac": b"fLaC" + bytes(999), "mp3 frames": b"\xff\xfb\x90\x00" * 500, "ogg": b"OggS" + bytes(999),
    }  # fmt: skip
    for name, data in sounds.items():
        yield Hostile(name, "audio", data)
