"""The section ``pool`` of cfg.json: what several models share of the machine."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from llamafast.config.fields import PositiveBytes, Seconds, Section


class PoolLimits(Section, frozen=True, kw_only=True):
    """``max_bytes``: host memory of all models that are loaded (null: what the machine, or the cgroup around the
    process, has less a tenth). ``queue_seconds``: how long a request may wait for its model to be loaded.
    ``unload_seconds``: how long what runs on a model may take once that is to go.
    """

    max_bytes: PositiveBytes | None = None
    queue_seconds: Seconds = 300.0
    unload_seconds: Annotated[float, Meta(ge=0)] = 30.0
