from collections.abc import Collection
from typing import Final, NamedTuple

class Device(NamedTuple):
    name: str
    description: str
    type: str
    backend: str
    buffers: str
    id: str | None
    free: int
    total: int

RPC_PROTOCOL: Final[tuple[int, int]]

def devices(servers: Collection[str] = ()) -> list[Device]: ...
def supports_rpc() -> bool: ...
def add_rpc_server(endpoint: str) -> None: ...
def init_numa(strategy: int) -> None: ...
