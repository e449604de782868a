"""What llama.cpp says that it has allocated, read from its log: nothing else of it tells the memory of a context."""

from __future__ import annotations

import re
from typing import NamedTuple

from llamafast._core.llama_log import drain_sizes

_MIB = 2**20
# A context's first line of these.
_BEGIN = re.compile(r" output buffer size = +(?P<mib>[\d.]+) MiB")
_CACHE = re.compile(r"^(?P<of>llama_(?:kv_cache|memory_recurrent)\w*): size = +(?P<mib>[\d.]+) MiB")
_COMPUTE = re.compile(r": +(?P<where>\S+) +compute buffer size = +(?P<mib>[\d.]+) MiB")
_DEVICE = re.compile(r"using device (?P<name>\S+) .* - (?P<mib>\d+) MiB free")


class ContextBytes(NamedTuple):
    """``kv`` are all rows that attention reads, ``state`` those of recurrent layers, ``compute`` what steps work in, by
    where that lies."""

    kv: int
    state: int
    compute: dict[str, int]

    @property
    def total(self) -> int:
        return self.kv + self.state + sum(self.compute.values())


class Allocated(NamedTuple):
    """Of each context, in the order in which they were made; ``free`` are bytes of each device that is no CPU, as they
    were before."""

    contexts: list[ContextBytes]
    free: dict[str, int]


def allocated() -> Allocated:
    """Since it was asked for the last time, in this process."""
    return read(drain_sizes())


def read(log: str) -> Allocated:
    contexts: list[ContextBytes] = []
    free: dict[str, int] = {}
    for line in log.splitlines():
        if (found := _DEVICE.search(line)) is not None:
            free[found["name"]] = int(found["mib"]) * _MIB
        elif (found := _BEGIN.search(line)) is not None:
            contexts.append(ContextBytes(0, 0, {}))
        elif contexts and (found := _CACHE.search(line)) is not None:
            last, size = contexts[-1], _bytes(found)
            recurrent = "recurrent" in found["of"]
            contexts[-1] = last._replace(state=last.state + size) if recurrent else last._replace(kv=last.kv + size)
        elif contexts and (found := _COMPUTE.search(line)) is not None:
            # the last word counts: buffers grow
            contexts[-1].compute[found["where"]] = _bytes(found)
    return Allocated(contexts, free)


def in_one_line(
    weights: int, contexts: list[ContextBytes], beside: dict[str, int], cache_bytes: int, available: int
) -> str:
    """All that a model takes; of two contexts the second one embeds."""
    parts = {"weights": weights}
    if contexts:
        first, *others = contexts
        parts |= {"KV": first.kv, "recurrent states": first.state, "compute": sum(first.compute.values())}
        parts |= {"a second context for vectors": sum(one.total for one in others)}
    told = ", ".join(f"{name} {in_words(size)}" for name, size in (parts | beside).items() if size)
    cache = f"finished prompts up to {in_words(cache_bytes)}, " if cache_bytes else ""
    return f"{told}; {cache}{in_words(available)} available"


def in_words(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _bytes(found: re.Match[str]) -> int:
    return round(float(found["mib"]) * _MIB)
