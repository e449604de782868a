"""A server of llama.cpp's RPC that lends out this machine's CPU: `python rpc_server.py LIBRARY HOST:PORT`."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

# enum ggml_backend_dev_type
CPU = 0


def ggml() -> Any:
    """The library that we link too: what it has registered is there for both."""
    library = ctypes.CDLL(str(distribution("llama-cpp-python").locate_file("llama_cpp/lib/libggml.so.0")))
    library.ggml_backend_load.restype = library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    return library


def load_rpc(library: str) -> None:
    """Let the llama.cpp of this process have RPC."""
    assert ggml().ggml_backend_load(library.encode()) is not None


@contextmanager
def rpc_server(library: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Where one listens, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__)), library, f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.01)
            yield f"127.0.0.1:{port}", process
        finally:
            process.kill()


def main(library: str, address: str) -> None:
    devices = (ctypes.c_void_p * 1)(ggml().ggml_backend_dev_by_type(CPU))
    start = ctypes.CDLL(library).ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(address.encode(), None, 1, 1, devices)


if __name__ == "__main__":
    main(*sys.argv[1:])
