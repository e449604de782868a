"""GET / and GET /page/…: the files of the page, which are everybody's; what it asks for takes a key like all else."""

from __future__ import annotations

from collections.abc import Iterator

from llamafast.api.http import Exchange, Headers
from llamafast.api.routes import Route, get
from llamafast.config import ServerConfig
from llamafast.errors import NotFound
from llamafast.page import CONTENT_SECURITY_POLICY, PageFile, page_files

_GUARDS: Headers = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_LASTING = b"public, max-age=31536000, immutable"
_ASK_AGAIN = b"no-cache"
_TEXT = b"text/plain; charset=utf-8"
# Without a page. What is there by the config, or for whom, the documents say.
_INSTEAD = b"""llamafast: a server of OpenAI's API and Anthropic's. The page is switched off (server.page).

POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/embeddings, /v1/rerank
GET  /v1/models, /props, /health, /metrics

Every field of every request: docs/fields.md
"""


class Page:
    """``GET /`` is a few lines of text where ``server.page`` is false."""

    def __init__(self, config: ServerConfig) -> None:
        self._files = page_files() if config.page else {}

    def routes(self) -> Iterator[Route]:
        yield Route("/", get(self.index), "open")
        if self._files:
            yield Route("/page/{id}", get(self.file), "open", id_pattern="[a-z0-9./]*")

    async def index(self, exchange: Exchange) -> None:
        if self._files:
            await self._send(exchange, self._files["index.html"])
        else:
            await exchange.reply(200, _INSTEAD, _TEXT, _GUARDS[1:3])

    async def file(self, exchange: Exchange, name: str) -> None:
        """Raises NotFound."""
        if (file := self._files.get(name)) is None:
            raise NotFound(f"the page has no file {name[:64]!r}")
        await self._send(exchange, file)

    async def _send(self, exchange: Exchange, file: PageFile) -> None:
        packs = _takes_gzip(exchange.headers.get(b"accept-encoding", b""))
        # an ETag is of the bytes that are sent
        tag = f'"{file.digest}{"-gzip" if packs else ""}"'.encode()
        about: Headers = (
            (b"etag", tag),
            (b"cache-control", _LASTING if file.lasting else _ASK_AGAIN),
            (b"vary", b"accept-encoding"),
            *_GUARDS,
        )
        if _matches(exchange.headers.get(b"if-none-match", b""), tag):
            await exchange.start(304, about)
            await exchange.write(b"", more=False)
            return
        body = file.packed if packs else file.content
        encoding: Headers = ((b"content-encoding", b"gzip"),) if packs else ()
        await exchange.reply(200, body, file.content_type.encode(), (*about, *encoding))


def _takes_gzip(accepted: bytes) -> bool:
    for one in accepted.lower().split(b","):
        name, _, quality = one.partition(b";")
        if name.strip() == b"gzip":
            return not quality.replace(b" ", b"").startswith((b"q=0;", b"q=0.0")) and quality.strip() != b"q=0"
    return False


def _matches(asked: bytes, tag: bytes) -> bool:
    return asked.strip() == b"*" or tag in (one.strip().removeprefix(b"W/") for one in asked.split(b","))
