"""One request a load client will send, and what it expects of the answer."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from llamafast.bench.address import Address


class Ask(Struct, frozen=True, kw_only=True):
    """A streaming request, without ``stream`` one that is answered at once, or with ``vectors`` one for so many
    embeddings.

    ``prompt_tokens`` and ``tokens`` are what usage must say, None what nobody can know before; an answer of known
    length must end with "length". In an open loop it is sent ``at`` seconds after the start. The client hangs up after
    ``leave_after`` events, and reads nothing for ``pause_s`` seconds after each read. With ``follows`` the prompt is
    appended to all prompts and answers before it in its script. Latencies count only where ``measured``.
    """

    body: dict[str, Any]
    path: str = "/v1/completions"
    prompt_tokens: int | None = None
    tokens: int | None = None
    vectors: int = 0
    stream: bool = True
    at: float = 0.0
    leave_after: int | None = None
    pause_s: float = 0.0
    follows: bool = False
    measured: bool = True

    @property
    def streams(self) -> bool:
        return self.stream and not self.vectors

    def message(self, to: Address, history: str = "") -> bytes:
        """The request as bytes; ``history`` is what was said before, for one that ``follows``."""
        stream = {"stream": True, "stream_options": {"include_usage": True}} if self.streams else {}
        fields = {"model": "benchmark", **stream, **self.body}
        if self.follows:
            fields["prompt"] = history + fields["prompt"]
        body = msgspec.json.encode(fields)
        head = (
            f"POST {to.url.prefix}{self.path} HTTP/1.1\r\n{to.headers}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body
