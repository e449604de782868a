"""The page at ``/``: what its files are, as bytes to be served, and what a browser may do with them.

The files name each other in the folder ``page/``, relative to where the page is. There each lies twice: under its own
name, and below a digest of them all, where it never changes. The page itself names the latter.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "app.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "conversations.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "engine.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "message.js": "text/javascript; charset=utf-8",
    "settings.js": "text/javascript; charset=utf-8",
    "marked.esm.js": "text/javascript; charset=utf-8",
    "purify.min.js": "text/javascript; charset=utf-8",
}
# Nothing from anywhere else, no markup of a model's into the page but through DOMPurify's policy.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_DIGITS = 16


class PageFile(NamedTuple):
    """``packed`` is ``content`` in gzip's format; ``digest`` is of the content. What is ``lasting`` never changes."""

    content: bytes
    packed: bytes
    content_type: str
    digest: str
    lasting: bool = False


@cache
def page_files() -> Mapping[str, PageFile]:
    """By name, and by digest of them all and name; the page itself is ``index.html``."""
    folder = files(__name__)
    read = {name: folder.joinpath(name).read_bytes() for name in FILES}
    version = _digest(b"".join(read[name] for name in sorted(read)))
    read["index.html"] = read["index.html"].replace(b"page/", f"page/{version}/".encode())
    found = {name: _file(content, FILES[name]) for name, content in read.items()}
    return found | {f"{version}/{name}": file._replace(lasting=True) for name, file in found.items()}


def _file(content: bytes, content_type: str) -> PageFile:
    return PageFile(content, gzip.compress(content, mtime=0), content_type, _digest(content))


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:_DIGITS]
