"""Where the server under load listens, and with which key it is asked."""

from __future__ import annotations

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple

import msgspec

from llamafast.errors import ConfigError
from llamafast.server_url import ServerURL, check_key, read_url

_ANSWER_SECONDS = 10.0


class Address(NamedTuple):
    """With ``tls`` the connection is encrypted."""

    url: ServerURL
    tls: ssl.SSLContext | None = None
    key: str = ""

    @property
    def headers(self) -> str:
        """The lines that every request has, each with its end."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"Host: {self.url.authority}\r\n{key}"

    def models(self) -> list[str]:
        """The names that GET /v1/models lists. Raises ConfigError where nobody answers, or somebody else."""
        connect = HTTPConnection(self.url.host, self.url.port, timeout=_ANSWER_SECONDS)
        if self.tls is not None:
            connect = HTTPSConnection(self.url.host, self.url.port, timeout=_ANSWER_SECONDS, context=self.tls)
        where, path = self.url.authority, f"{self.url.prefix}/v1/models"
        try:
            connect.request("GET", path, headers={"Authorization": f"Bearer {self.key}"} if self.key else {})
            answer = connect.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise ConfigError(f"{where}: no server answers: {error or type(error).__name__}") from error
        finally:
            connect.close()
        if answer.status != 200:
            said = body[:300].decode(errors="replace")
            raise ConfigError(f"{where}: GET {path} is answered with {answer.status}: {said}")
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: GET {path} is answered with no list of models: {error}") from error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def loopback(port: int) -> Address:
    """A server of one's own, that asks for no key."""
    return Address(ServerURL("http", "127.0.0.1", port, ""))


def read_address(url: str, key: str = "") -> Address:
    """The server at ``url``, with or without /v1. Raises ConfigError for an address or a key that is none.

    Certificates are those that the system trusts, or the ones in the file that SSL_CERT_FILE names.
    """
    server = read_url(url)
    tls = ssl.create_default_context() if server.scheme == "https" else None
    return Address(server, tls, check_key(key))
