"""Servers of llama.cpp's RPC are asked before llama.cpp is, which would end the process. Their answers are fakes'."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llamafast.engine import rpc_servers
from llamafast.engine.rpc_servers import connect, connected
from llamafast.errors import ConfigError

QUESTION = bytes([14]) + struct.pack("<Q", 24) + bytes(24)
ANSWER = struct.pack("<Q", 28) + bytes([7, 0, 5, 0]) + bytes(24)


@contextmanager
def server(*answers: bytes, hangs_up: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """Its address, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(len(QUESTION), socket.MSG_WAITALL))
                for answer in answers:
                    connection.sendall(answer)
                if not hangs_up:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What llama.cpp, which has RPC, was given."""
    given: list[str] = []
    monkeypatch.setattr(rpc_servers, "_connected", set())
    monkeypatch.setattr(rpc_servers.core, "supports_rpc", lambda: True)
    monkeypatch.setattr(rpc_servers.core, "add_rpc_server", given.append)
    return given


def fault_of(*servers: str) -> str:
    with pytest.raises(ConfigError) as caught:
        connect(servers)
    return str(caught.value)


def test_a_library_without_rpc_is_told_how_to_build_one() -> None:
    told = fault_of("127.0.0.1:1")
    assert told.startswith("model.rpc_servers: this llama.cpp was built without RPC; ")
    assert 'CMAKE_ARGS="-DGGML_RPC=ON" pip install ' in told
    assert "--no-binary llama-cpp-python llama-cpp-python==0.3." in told
    assert connected() == frozenset()


def test_a_server_is_asked_once(registered: list[str]) -> None:
    with server(ANSWER[:5], ANSWER[5:]) as (address, asked):
        connect([address])
    connect([address])
    assert registered == [address]
    assert asked == [QUESTION]
    assert connected() == {address}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "is no RPC server of version 7.0: it hung up; both sides need the same llama.cpp"),
        (ANSWER[:-1], "is no RPC server of version 7.0: it hung up; both sides need the same llama.cpp"),
        (
            struct.pack("<Q", 28) + bytes([6, 0, 1]) + bytes(25),
            "speaks version 6.0.1, and not 7.0: both sides need the same llama.cpp",
        ),
        (
            struct.pack("<Q", 28) + bytes([7, 1, 0]) + bytes(25),
            "speaks version 7.1.0, and not 7.0: both sides need the same llama.cpp",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n" + bytes(28), "speaks version another, and not 7.0"),
    ],
)
def test_one_that_llama_cpp_would_die_of(registered: list[str], answer: bytes, fault: str) -> None:
    with server(answer) as (address, _):
        assert fault_of(address).startswith(f"model.rpc_servers[0]: {address} {fault}")
    assert registered == []


def test_one_that_is_busy(registered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one client at a time, and others wait in its backlog."""
    monkeypatch.setattr(rpc_servers, "ANSWERS_IN", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert "a server has one client at a time, is it another's?" in fault_of(address)
    assert registered == []


def test_one_that_is_not_there(registered: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"127.0.0.1:{listener.getsockname()[1]}"
    with server(ANSWER) as (address, _):
        assert fault_of(address, gone) == f"model.rpc_servers[1]: {gone} cannot be reached: Connection refused"
    assert registered == [address]
    assert "model.rpc_servers[0]: no.such.host.invalid:1 cannot be reached: " in fault_of("no.such.host.invalid:1")
    for nobody in ("a..b:1", f"{'x' * 64}.de:1"):
        assert f"{nobody} cannot be reached: that is no name of a host" in fault_of(nobody)


def test_one_without_devices(registered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(endpoint: str) -> Any:
        raise ValueError(f"{endpoint} has no device")

    monkeypatch.setattr(rpc_servers.core, "add_rpc_server", none)
    with server(ANSWER) as (address, _):
        assert fault_of(address) == f"model.rpc_servers[0]: {address} has no device"
    assert connected() == frozenset()
