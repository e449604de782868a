"""What models have left in the disk tier's folder that the config has no more, under this name or at all.

Each model has a part of ``disk_cache.max_bytes`` for its own folder, and none looks beyond it. So here the others are
weighed beside them, and go as a whole, first what has not been used for longest. What another server has in its config
is that one's, loaded or not: each holds the lock of its models' folders as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llamafast.config import DiskCacheConfig, ModelConfig
from llamafast.engine.files import Files
from llamafast.engine.namespaces import (
    LOCK,
    is_held,
    is_name,
    is_ours,
    namespaces,
    refuse_strangers,
    remove,
    weighed,
)
from llamafast.errors import ConfigError
from llamafast.pool.division import disk_folder

log = logging.getLogger(__name__)

# So often it is looked at what there is, as children do it.
WEIGH_SECONDS = 10.0
# As ``disk_folder`` names them.
_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}-[0-9a-f]{8}")


class _Left(NamedTuple):
    """A former model's folder, or the namespace of a server that had one model: when it was last used, its bytes, and
    the namespaces in it."""

    used_at: float
    n_bytes: int
    place: Path
    inside: tuple[Path, ...]


class FormerFolders:
    """Those that none of ``models`` has. Any thread, one at a time."""

    def __init__(self, disk: DiskCacheConfig, models: Iterable[ModelConfig], files: Files | None = None) -> None:
        self._path = Path(disk.path)
        self._max_bytes = disk.max_bytes
        self._own = {disk_folder(disk, model) for model in models}
        self._files = files or Files()
        self._claims: list[int] = []

    def claim(self) -> None:
        """Let no other server take the folders of ``models`` for former ones', until ``release`` or the end of the
        process. Whoever cannot write there has nothing to lose."""
        for place in self._own:
            with suppress(OSError, ConfigError):
                for folder in (self._path, place):
                    self._files.make_folder(folder)
                    refuse_strangers(folder, self._files)
                if (lock := self._files.lock(place / LOCK)) is not None:
                    self._claims.append(lock)

    def release(self) -> None:
        while self._claims:
            self._files.close(self._claims.pop())

    def make_room(self) -> bool:
        """Let go what there is no room for beside the models' own; whether something is left that may have to go."""
        found = list(self._found())
        if not found:
            return False
        left = sorted(self._left(found))
        n_bytes = sum(self._weighed(place)[1] for place in self._own) + sum(one.n_bytes for one in left)
        kept = len(found) - len(left)  # they are held, and may be let go
        for one in left:
            if n_bytes > self._max_bytes and self._remove(one):
                n_bytes -= one.n_bytes
            else:
                kept += 1
        return kept > 0

    def clear(self, unloaded: Iterable[Path] = ()) -> int:
        """Let all of them go, and what is in the folders of models that are not loaded; how many bytes these had."""
        freed = sum(one.n_bytes for one in self._left(self._found()) if self._remove(one))
        for folder in unloaded:
            with suppress(OSError, ConfigError):
                refuse_strangers(folder, self._files)
                for place in namespaces(folder, self._files):
                    n_bytes = weighed(place, self._files)[1]
                    if self._is_alone(place) and remove(place, self._files):
                        freed += n_bytes
        return freed

    def _left(self, found: Iterable[tuple[Path, tuple[Path, ...]]]) -> Iterator[_Left]:
        """Of what is ours only what nobody writes, or has in a config."""
        for place, inside in found:
            claimed = place not in inside and (place / LOCK).exists() and is_held(place, self._files)
            if not claimed and not any(is_held(one, self._files) for one in inside):
                yield _Left(*self._weighed(place), place, inside)

    def _found(self) -> Iterator[tuple[Path, tuple[Path, ...]]]:
        """What is certainly ours, each with its namespaces."""
        for place in self._places():
            if inside := self._inside(place):
                yield place, tuple(inside)

    def _places(self) -> list[Path]:
        try:
            refuse_strangers(self._path, self._files)
            names = [one.name for one in self._files.scan(self._path) if not one.is_file]
        except (OSError, ConfigError):  # it is not there yet, or of no use to models either, who will tell
            return []
        places = [self._path / name for name in names if is_name(name) or _NAME.fullmatch(name)]
        return [place for place in places if place not in self._own and self._is_alone(place)]

    def _inside(self, place: Path) -> list[Path]:
        """A namespace itself, or those of a model's folder; none where anything else is, as then it is not one."""
        if is_name(place.name):
            return [place] if is_ours(place, self._files) else []
        found: list[Path] = []
        with suppress(OSError):
            found = [place / one.name for one in self._files.scan(place) if one.name != LOCK]
        whole = all(is_name(one.name) and self._is_alone(one) for one in found)
        ours = [is_ours(one, self._files) for one in found] if whole else []
        return found if any(ours) and all(map(self._is_begun, found, ours)) else []

    def _is_begun(self, place: Path, ours: bool) -> bool:
        """Whether it is ``ours``, or nobody has come further than its lock."""
        with suppress(OSError):
            return ours or all(one.name == LOCK and not one.n_bytes for one in self._files.scan(place))
        return False

    def _is_alone(self, place: Path) -> bool:
        """Whether a folder is this user's alone to write."""
        try:
            refuse_strangers(place, self._files)
        except (OSError, ConfigError):
            return False
        return True

    def _weighed(self, place: Path) -> tuple[float, int]:
        """When a folder was last used, and its bytes."""
        used_at, n_bytes = 0.0, 0
        with suppress(OSError):
            inside = [place] if is_name(place.name) else namespaces(place, self._files)
            for one in inside:
                used, more = weighed(one, self._files)
                used_at, n_bytes = max(used_at, used), n_bytes + more
        return used_at, n_bytes

    def _remove(self, left: _Left) -> bool:
        gone = left.inside == (left.place,) and remove(left.place, self._files)
        if not gone and left.inside != (left.place,):
            try:
                gone = self._remove_folder(left)
            except OSError as error:
                log.warning("models   cannot delete %s: %s", left.place, error)
        if gone:
            log.info("models   %s, which no model has any more, made room: %d bytes", left.place, left.n_bytes)
        return gone

    def _remove_folder(self, left: _Left) -> bool:
        """A model's; False where it is another server's meanwhile. Raises OSError."""
        lock = self._files.lock(left.place / LOCK)
        if lock is None:
            return False
        try:
            gone = all(remove(one, self._files) for one in left.inside)
            self._files.unlink(left.place / LOCK)
            if gone:
                self._files.remove_folder(left.place)
        finally:
            self._files.close(lock)
        return gone


async def keep_room(former: FormerFolders) -> None:
    """As long as there is something that may have to go."""
    await asyncio.to_thread(former.claim)
    while True:
        if not await asyncio.to_thread(former.make_room):
            return
        await asyncio.sleep(WEIGH_SECONDS)
