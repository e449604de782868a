"""TLS against real servers, with an authority of the test's own: what OpenAI's client and sockets trust, and what the
server trusts."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import trustme
import websockets
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support.server_process import Process

from benchmarks.server import free_port
from serve.conftest import model_config

# of a handshake that the server ends the client may only hear when it reads
REFUSED = (ssl.SSLError, ConnectionError, httpx.TransportError)


class Authorities(NamedTuple):
    ours: trustme.CA
    others: trustme.CA


@pytest.fixture(scope="module")
def authorities() -> Authorities:
    return Authorities(trustme.CA(), trustme.CA())


@contextmanager
def serving(folder: Path, model: Path, leaf: trustme.LeafCert, client_authority: trustme.CA, **server: object) -> Any:
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    client_authority.cert_pem.write_to_path(folder / "ca.pem")
    config = model_config(model, free_port(), alias="scripted")
    config["server"] |= {  # type: ignore[operator]
        "ssl_certfile": str(folder / "cert.pem"),
        "ssl_keyfile": str(folder / "key.pem"),
        "ssl_keyfile_password": "secret",
        "header_seconds": 1,
        "ssl_ca_certs": str(folder / "ca.pem"),
        **server,
    }
    with Process(folder, config) as process:
        try:
            process.until_serving()
            yield process
            process.terminate()
            process.ended(30)
            assert "Traceback" not in process.log
            assert "secret" not in process.log
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(
    authorities: Authorities, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """TLS 1.3; clients may have a certificate."""
    folder, leaf = tmp_path_factory.mktemp("tls"), authorities.ours.issue_cert("localhost", "127.0.0.1")
    with serving(folder, tiny_model("tiny-scripted"), leaf, authorities.ours, ssl_cert_reqs=1) as process:
        yield process


@pytest.fixture(scope="module")
def strict_server(
    authorities: Authorities, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """TLS 1.2 too; clients must have a certificate; its own has expired."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    leaf = authorities.ours.issue_cert("127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday)
    options = {"ssl_cert_reqs": 2, "ssl_minimum_version": "TLSv1.2"}
    folder = tmp_path_factory.mktemp("tls-strict")
    with serving(folder, tiny_model("tiny-scripted"), leaf, authorities.ours, **options) as process:
        yield process


def client_context(
    trusted: trustme.CA | None, certified_by: trustme.CA | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """Of a client that trusts one authority, or with None anybody."""
    context = ssl.create_default_context()
    context.maximum_version = newest
    if trusted is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        trusted.configure_trust(context)
    if certified_by is not None:
        certified_by.issue_cert("client").configure_cert(context)
    return context


def ready(process: Process, context: ssl.SSLContext) -> object:
    with httpx.Client(verify=context, timeout=60) as client:
        return client.get(f"https://127.0.0.1:{process.port}/ready").json()


def test_a_handshake_that_never_ends_is_given_up(server: Process) -> None:
    for begun in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        with server.connect(begun) as connection:
            started = time.monotonic()
            assert connection.recv(1) == b""
            assert 0.9 < time.monotonic() - started < 15


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_openais_client_over_https(server: Process, authorities: Authorities, host: str) -> None:
    transport = httpx.Client(verify=client_context(authorities.ours), timeout=60)
    url = f"https://{host}:{server.port}/v1"
    assert f"serving  https://127.0.0.1:{server.port}/v1" in server.log
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=transport) as client:
        messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|s_text|>"}]
        chunks = list(client.chat.completions.create(model="scripted", messages=messages, temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Hello there, this reply is fixed."


async def test_a_response_over_wss(server: Process, authorities: Authorities) -> None:
    url, context = f"wss://127.0.0.1:{server.port}/v1/responses", client_context(authorities.ours)
    async with asyncio.timeout(30), websockets.connect(url, ssl=context) as socket:
        await socket.send(json.dumps({"type": "response.create", "input": "Hi", "max_output_tokens": 4}))
        kinds = [json.loads(await socket.recv())["type"]]
        while kinds[-1] not in ("response.completed", "response.incomplete"):
            kinds.append(json.loads(await socket.recv())["type"])
    assert kinds[0] == "response.created"


def test_a_client_refuses_a_certificate_of_another_authority(server: Process, authorities: Authorities) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        ready(server, client_context(authorities.others))


def test_a_client_refuses_a_certificate_that_has_expired(strict_server: Process, authorities: Authorities) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate has expired"):
        ready(strict_server, client_context(authorities.ours, authorities.ours))


def test_clients_that_may_have_a_certificate(server: Process, authorities: Authorities) -> None:
    for nobody_or_ours in (None, authorities.ours):
        assert ready(server, client_context(authorities.ours, nobody_or_ours)) == {"status": "ok"}
    with pytest.raises(REFUSED):
        ready(server, client_context(authorities.ours, authorities.others))


def test_clients_that_must_have_a_certificate(strict_server: Process, authorities: Authorities) -> None:
    assert ready(strict_server, client_context(None, authorities.ours)) == {"status": "ok"}
    for nobody_or_another in (None, authorities.others):
        with pytest.raises(REFUSED):
            ready(strict_server, client_context(None, nobody_or_another))


def test_tls_1_2_is_taken_by_option_only(server: Process, strict_server: Process, authorities: Authorities) -> None:
    old = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError, match="PROTOCOL_VERSION"):
        ready(server, client_context(authorities.ours, newest=old))
    assert ready(strict_server, client_context(None, authorities.ours, newest=old)) == {"status": "ok"}


def test_plain_http_gets_no_answer(server: Process, authorities: Authorities) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/ready", timeout=60)
    assert ready(server, client_context(authorities.ours)) == {"status": "ok"}


def test_files_are_looked_at_before_the_model(tmp_path: Path) -> None:
    config = model_config("none.gguf", 0)
    config["server"] = {"ssl_certfile": "none.pem", "ssl_keyfile": "none.pem"}
    with Process(tmp_path, config) as process:
        process.ended(30)
        assert process.returncode == 1
        file = Path.cwd() / "none.pem"
        fault = f"server.ssl_certfile: {file}: no certificate in PEM: No such file or directory"
        assert process.log == f"llamafast: {fault}\n"
