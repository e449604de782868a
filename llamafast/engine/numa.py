"""How compute threads go to the nodes of a machine's memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from llamafast._core.devices import init_numa
from llamafast.config import NumaStrategy
from llamafast.errors import ConfigError

logger = logging.getLogger(__name__)

NODES = Path("/sys/devices/system/node")
_STRATEGIES: tuple[str, ...] = get_args(NumaStrategy)
_OFF, _UNBUILT = "disabled", "mirror"

_chosen = _OFF


def choose_numa(strategy: NumaStrategy) -> None:
    """For all that this process computes. llama.cpp takes one: raises ConfigError for a second one that is another.
    What will have no effect is told."""
    global _chosen
    if strategy in (_OFF, _chosen):
        return
    if _chosen != _OFF:
        raise ConfigError(f"model.numa: {strategy}, and this process computes with {_chosen} already")
    init_numa(_STRATEGIES.index(strategy))
    _chosen = strategy
    does_nothing = strategy == _UNBUILT or _n_nodes() < 2
    logger.log(logging.WARNING if does_nothing else logging.INFO, "numa     %s", in_words(strategy))


def in_words(strategy: NumaStrategy) -> str:
    """With the reason where it does nothing here."""
    if _n_nodes() < 2:
        return f"{strategy} does nothing: this machine has one node of memory"
    if strategy == _UNBUILT:
        return f"{strategy} does nothing: llama.cpp has the name, and no code for it"
    return f"{strategy}, over {_n_nodes()} nodes"


def _n_nodes() -> int:
    return len(list(NODES.glob("node[0-9]*")))
