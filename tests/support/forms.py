"""Forms as clients send them, and as they should not."""

from __future__ import annotations

from collections.abc import Iterable

BOUNDARY = "----a-boundary-7f31"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
# a field's name with its text, or with the bytes of a file
Field = tuple[str, str | bytes]


def part(name: str, value: str | bytes, boundary: str = BOUNDARY) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
    if isinstance(value, bytes):
        return f'{head}; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'.encode() + value + b"\r\n"
    return f"{head}\r\n\r\n{value}\r\n".encode()


def form(fields: Iterable[Field], boundary: str = BOUNDARY) -> bytes:
    """The body of a form."""
    return b"".join([*(part(name, value, boundary) for name, value in fields), f"--{boundary}--\r\n".encode()])
