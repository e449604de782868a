"""Servers of llama.cpp's RPC, whose devices are devices of this process.

llama.cpp ends the process where one does not answer, or speaks another version, and waits for ever where one is busy
with somebody else, as each serves one client at a time. So each is asked here first, as llama.cpp would.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from importlib.metadata import version

from llamafast._core import devices as core
from llamafast.errors import ConfigError

# Seconds, for a connection and for each piece of an answer.
ANSWERS_IN = 5.0
# ggml-rpc: a command's number, the bytes behind it, what this end of a connection can do; answered by the bytes
# behind, three numbers of a version, and what the other end can do. Numbers are little-endian.
_HELLO, _CAPABILITIES = 14, 24
_QUESTION = struct.pack(f"<BQ{_CAPABILITIES}x", _HELLO, _CAPABILITIES)
_ANSWER = struct.Struct(f"<QBBBx{_CAPABILITIES}x")
_ANSWER_BYTES = _ANSWER.size - 8

_connected: set[str] = set()


def connected() -> frozenset[str]:
    """All that this process has registered."""
    return frozenset(_connected)


def connect(servers: Iterable[str]) -> None:
    """Register the devices of those that are not yet. Raises ConfigError, with how to build where llama.cpp was built
    without."""
    for i, server in enumerate(servers):
        if server in _connected:
            continue
        if not core.supports_rpc():
            raise ConfigError(
                "model.rpc_servers: this llama.cpp was built without RPC; "
                'CMAKE_ARGS="-DGGML_RPC=ON" pip install --force-reinstall --no-deps --no-cache-dir '
                f"--no-binary llama-cpp-python llama-cpp-python=={version('llama-cpp-python')} builds it anew"
            )
        if (fault := _fault_of(server)) is not None:
            raise ConfigError(f"model.rpc_servers[{i}]: {server} {fault}")
        try:
            core.add_rpc_server(server)
        except ValueError as error:
            raise ConfigError(f"model.rpc_servers[{i}]: {error}") from error
        _connected.add(server)


def _fault_of(server: str) -> str | None:
    """What is wrong with it; None where it can be connected to."""
    host, _, port = server.rpartition(":")
    try:
        # llama.cpp knows IPv4 only
        (*_, address), *_ = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
        with socket.create_connection((str(address[0]), int(port)), timeout=ANSWERS_IN) as connection:
            connection.sendall(_QUESTION)
            answer = _read(connection, _ANSWER.size)
    except TimeoutError:
        return f"does not answer within {ANSWERS_IN:.0f} s: a server has one client at a time, is it another's?"
    except UnicodeError:  # of a part between dots that is empty or too long
        return "cannot be reached: that is no name of a host"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}"
    wanted = ".".join(map(str, core.RPC_PROTOCOL))
    if len(answer) < _ANSWER.size:
        return f"is no RPC server of version {wanted}: it hung up; both sides need the same llama.cpp"
    n_bytes, major, minor, patch = _ANSWER.unpack(answer)
    if n_bytes != _ANSWER_BYTES or major != core.RPC_PROTOCOL[0] or minor > core.RPC_PROTOCOL[1]:
        spoken = f"{major}.{minor}.{patch}" if n_bytes == _ANSWER_BYTES else "another"
        return f"speaks version {spoken}, and not {wanted}: both sides need the same llama.cpp"
    return None


def _read(connection: socket.socket, n_bytes: int) -> bytes:
    """So many bytes, or fewer where the other side hangs up."""
    read = b""
    while len(read) < n_bytes and (piece := connection.recv(n_bytes - len(read))):
        read += piece
    return read
