"""Settings in the environment, for containers: ``LLAMAFAST_CTX``, and any key as ``LLAMAFAST_MODEL__N_CTX``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from llamafast.cli.settings import Setting, read_value

PREFIX = "LLAMAFAST_"
# Which are read elsewhere: keys of clients, the build, and what tests and benchmarks have.
OTHERS = frozenset({"API_KEY", "BUILD", "TESTS", "DEBUG", "SIMD", "BENCH_CACHE", "RPC_LIBRARY"})
# What names a model or a file.
MODEL, CONFIG = "LLAMAFAST_MODEL", "LLAMAFAST_CONFIG_FILE"
# What Kubernetes tells each container of a service that is called llamafast.
_OF_A_SERVICE = re.compile(r"SERVICE_(HOST|PORT(_.*)?)|PORT_\d+_(TCP|UDP|SCTP)(_.*)?")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def read_environment(environ: Mapping[str, str], keys: Mapping[str, str]) -> Iterator[Setting]:
    """Those that ``environ`` has. ``keys`` are those with names of their own (``CTX``), and what they set. Empty ones
    say nothing."""
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(PREFIX)
        if name == variable or not value or (path := _path(name, keys)) is None or _ADDRESS.match(value):
            continue
        yield Setting(path, read_value(path, value), variable)


def strangers(environ: Mapping[str, str], keys: Mapping[str, str]) -> Iterator[str]:
    """A line on each variable that begins like ours and does nothing."""
    known = {*keys, *OTHERS, MODEL.removeprefix(PREFIX), CONFIG.removeprefix(PREFIX)}
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(PREFIX)
        if name == variable or _OF_A_SERVICE.fullmatch(name) or "__" in name:
            continue
        if name in keys and _ADDRESS.match(value):
            yield f"{variable}: {value} is Kubernetes' address of a service, and no setting: it is passed over"
        elif name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""
            yield f"{variable}: no such setting{hint}"


def _path(name: str, keys: Mapping[str, str]) -> str | None:
    return name.lower().replace("__", ".") if "__" in name else keys.get(name)
