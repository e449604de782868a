"""The server's certificate: what is wrong with its files is found before the model loads.

OpenSSL, which Python has, can say what is wrong. What only Granian's rustls refuses, P-521 for one, Granian answers by
aborting the process, so a process of its own tries that first. So it does with every encrypted key: those are decrypted
by the package cryptography, into memory that has a path.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from granian.constants import Interfaces, SSLProtocols
from granian.server.embed import Server

from llamafast.config import ServerConfig
from llamafast.errors import ConfigError

# It takes a quarter of one; a machine may be very busy.
TRY_SECONDS = 60
PROTOCOLS = {"TLSv1.2": SSLProtocols.tls12, "TLSv1.3": SSLProtocols.tls13}


def tls_options(config: ServerConfig) -> dict[str, Any]:
    """Granian's options for TLS; none without a certificate. Raises ConfigError, which names the key at fault."""
    if config.ssl_certfile is None or config.ssl_keyfile is None:
        return {}
    _check_certificates("ssl_certfile", config.ssl_certfile)
    _check_key(config.ssl_certfile, config.ssl_keyfile, config.ssl_keyfile_password)
    if config.ssl_ca_certs is not None:
        _check_certificates("ssl_ca_certs", config.ssl_ca_certs)
    _try(config)
    return _options(config)


def _options(config: ServerConfig) -> dict[str, Any]:
    assert config.ssl_certfile is not None
    assert config.ssl_keyfile is not None
    password = config.ssl_keyfile_password
    return {
        "ssl_cert": Path(config.ssl_certfile),
        "ssl_key": Path(config.ssl_keyfile) if password is None else _decrypted(config.ssl_keyfile, password),
        "ssl_protocol_min": PROTOCOLS[config.ssl_minimum_version],
        # with authorities Granian asks for a client's certificate and checks the one it gets, wanted or not
        "ssl_ca": Path(config.ssl_ca_certs) if config.ssl_ca_certs is not None else None,
        "ssl_client_verify": config.ssl_cert_reqs == int(ssl.CERT_REQUIRED),
    }


def _check_certificates(key: str, path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.{key}: {Path(path).absolute()}: no certificate in PEM: {_reason(error)}") from error


def _check_key(certificate: str, key: str, given: str | None) -> None:
    encrypted = False

    def password() -> str:
        """Asked for where the key is encrypted. Without this OpenSSL would ask the terminal."""
        nonlocal encrypted
        encrypted = True
        return given or ""

    fault = ""
    try:
        if b"PRIVATE KEY-----" not in Path(key).read_bytes():
            fault = "no private key in PEM"
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
            if given is not None and not encrypted:
                fault = "is not encrypted, and server.ssl_keyfile_password is set"
    except ssl.SSLError as error:
        fault = f"cannot be used with server.ssl_certfile: {_reason(error)}"
        if encrypted:
            fault = "is encrypted, and server.ssl_keyfile_password " + ("does not open it" if given else "is not set")
    except (OSError, ValueError) as error:
        fault = f"cannot be read: {_reason(error)}"
    if fault:
        raise ConfigError(f"server.ssl_keyfile: {Path(key).absolute()}: {fault}")


class _Memory(type(Path())):  # type: ignore[misc]
    """The path of a descriptor. Granian resolves paths, and this one leads to a name that is no file's."""

    def resolve(self, strict: bool = False) -> _Memory:
        return self


def _decrypted(key: str, password: str) -> Path:
    """The key without its password, on no disk. It lives as long as the process. Raises ConfigError."""
    try:
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )
    except ImportError as error:
        raise ConfigError("server.ssl_keyfile_password: needs `pip install llamafast[tls]`") from error
    if not hasattr(os, "memfd_create"):
        raise ConfigError("server.ssl_keyfile_password: Linux only; `openssl pkey -in KEY -out PLAIN` decrypts a key")
    try:
        opened = load_pem_private_key(Path(key).read_bytes(), password.encode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.ssl_keyfile: {Path(key).absolute()}: {_reason(error)}") from error
    memory = os.memfd_create("key")
    os.write(memory, opened.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return _Memory(f"/proc/self/fd/{memory}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def _try(config: ServerConfig) -> None:
    script = f"import sys; sys.path[:] = {sys.path!r}; from llamafast.tls import serve_once; serve_once()"
    line = msgspec.json.encode(config)
    try:
        process = subprocess.run(
            [sys.executable, "-c", script], input=line, capture_output=True, check=False, timeout=TRY_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"server.ssl_certfile: Granian does not serve with it within {TRY_SECONDS} s") from error
    if process.returncode:
        told = process.stderr.decode(errors="replace").strip().splitlines()
        # what a panic is about follows the place of it
        at = next((n for n, text in enumerate(told) if "panicked at" in text), len(told) - 2)
        raise ConfigError(f"server.ssl_certfile: Granian cannot serve with it: {' '.join(told[at + 1 : at + 2])}")


def serve_once() -> None:
    """In a process of its own: Granian with the certificates of the config on stdin, for a moment."""
    # a core file would hold the key
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerConfig)
    server = Server(None, port=0, interface=Interfaces.ASGINL, log_enabled=False, **_options(config))
    server.stop()  # type: ignore[no-untyped-call]
    asyncio.run(server.serve())
