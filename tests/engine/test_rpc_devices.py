"""Real servers of llama.cpp's RPC, as processes of this machine."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from support.engines import collect, config, plan
from support.rpc_server import load_rpc, rpc_server

from llamafast.engine import rpc_servers
from llamafast.engine.load import load_engine
from llamafast.engine.model_params import model_params
from llamafast.errors import ConfigError

pytestmark = pytest.mark.rpc


@pytest.fixture(scope="module")
def library() -> str:
    path = os.environ.get("LLAMAFAST_RPC_LIBRARY", "")
    assert path, "run `make test-rpc`, which builds llama.cpp's RPC"
    load_rpc(path)
    return path


async def texts(path: Any, **model: Any) -> list[Any]:
    engine = load_engine(config(path, **model), path)
    engine.start()
    try:
        return [await collect(engine.submit(plan(*range(first, first + 20)))) for first in (40, 90)]
    finally:
        await engine.close()
        # what outlives its server ends the process when it is freed
        del engine
        gc.collect()


@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-llama"])
async def test_a_model_says_the_same_on_other_machines(tiny_model: Any, library: str, name: str) -> None:
    path = tiny_model(name)
    alone = await texts(path)
    with rpc_server(library) as (first, _), rpc_server(library) as (second, _):
        servers = (first, second)
        there = model_params(config(path, rpc_servers=servers).model, path)
        assert [device.description for device in there.devices] == [first, second]
        names = [device.name for device in there.devices]
        assert await texts(path, rpc_servers=servers) == alone
        assert await texts(path, rpc_servers=servers, tensor_split=(1, 0)) == alone
        assert await texts(path, rpc_servers=servers, devices=names[1:], n_cpu_moe="all") == alone
        moved = {r"blk\.1\.attn": names[0], r"ffn_down": there.devices[1].buffers, "attn": "CPU"}
        assert await texts(path, rpc_servers=servers, override_tensors=moved) == alone
        # the servers of this process are another model's
        assert await texts(path) == alone


def test_one_that_has_a_client_is_not_waited_for(
    tiny_model: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_servers, "ANSWERS_IN", 0.2)
    path = tiny_model("tiny-llama")
    with rpc_server(library) as (address, _):
        engine = load_engine(config(path, rpc_servers=(address,)), path)
        monkeypatch.setattr(rpc_servers, "_connected", set())
        with pytest.raises(ConfigError, match="a server has one client at a time"):
            load_engine(config(path, rpc_servers=(address,)), path)
        del engine
        gc.collect()


DIES = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.engines import collect, config, plan
from support.rpc_server import load_rpc
from llamafast.engine.load import load_engine

async def main(library, address, pid, path):
    load_rpc(library)
    path = Path(path)
    engine = load_engine(config(path, rpc_servers=(address,)), path)
    engine.start()
    await collect(engine.submit(plan(*range(40, 60))))
    os.kill(int(pid), signal.SIGKILL)
    print("killed", flush=True)
    await collect(engine.submit(plan(*range(40, 60))))

asyncio.run(main(*sys.argv[1:]))
"""


def test_the_end_of_a_server_ends_the_process(tiny_model: Any, library: str) -> None:
    """As docs/models.md says: llama.cpp aborts. Whoever watches the process starts it again."""
    with rpc_server(library) as (address, process):
        command = [sys.executable, "-c", DIES, library, address, str(process.pid), str(tiny_model("tiny-llama"))]
        quiet = os.environ | {"GGML_NO_BACKTRACE": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=quiet)
    assert ended.stdout == "killed\n", ended.stderr
    assert ended.returncode == -signal.SIGABRT
    assert "Remote RPC server crashed or returned malformed response" in ended.stderr
