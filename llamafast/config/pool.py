"""The section ``pool`` of cfg.json: what several models share of the machine."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from llamafast.config.fields import PositiveBytes, Seconds, Section


class PoolLimits(Section, frozen=True, kw_only=True):
    """``max_bytes``: host memory of all models that are loaded (null: what the machine, or the cgroup around the
    process, has less a tenth). ``queue_seconds``: how long a request may wait for its model to be loaded.
    ``load_timeout_seconds``: a process that comes no further for so long while it loads is ended and started again
    (null: none is). ``unload_seconds``: how long what runs on a model may take once that is to go. ``stall_seconds``: a
    loaded model whose process answers nothing for so long, or whose engine comes no further with its work, is ended and
    started again (null: none is).
    """

    max_bytes: PositiveBytes | None = None
    queue_seconds: Seconds = 300.0
    load_timeout_seconds: Seconds | None = 600.0
    unload_seconds: Annotated[float, Meta(ge=0)] = 30.0
    stall_seconds: Seconds | None = 120.0
