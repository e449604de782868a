"""What a step that failed is told as, by its code."""

from __future__ import annotations

import logging

from llamafast._core.context import GROUPS_APART, NO_ROOM_FOR_ADAPTERS, ROWS_ASTRAY
from llamafast._core.llama_log import drain_log
from llamafast._core.step import NO_MEMORY, NO_OUTPUT, NOT_TAKEN_BACK
from llamafast.errors import EngineFailure

logger = logging.getLogger(__name__)

_OWN = {
    NO_MEMORY: "the server ran out of memory",
    NO_OUTPUT: "llama.cpp computed a row and gave nothing of it",
    NOT_TAKEN_BACK: "llama.cpp did not forget rows that were drafted",
    NO_ROOM_FOR_ADAPTERS: "the server ran out of memory",
    GROUPS_APART: "a step was of adapters that cannot be computed together",
    ROWS_ASTRAY: "llama.cpp computed rows in another order than adapters were for",
}


def step_failure(code: int) -> EngineFailure:
    """The error for whom a step concerned that came to ``code``; what llama.cpp said of it is logged."""
    told = _OWN.get(code) or f"llama_decode failed with code {code}"
    logger.error("%s: %s", told, drain_log() or "no more is known")
    return EngineFailure(told)
