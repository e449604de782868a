"""Responses that clients may read again or continue: bounded by number, bytes and age."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from llamafast.api.schema.responses import Response
from llamafast.chat.items import Item
from llamafast.config import ResponsesConfig
from llamafast.errors import ConfigError, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

# How long a request waits for another process that holds the file.
BUSY_SECONDS = 0.1

VERSION = 2

# An item is named by its client, so several responses may have items of one name.
_ITEMS_TABLE = """
CREATE TABLE IF NOT EXISTS items (
    id TEXT, response_id TEXT REFERENCES responses (id) ON DELETE CASCADE, item BLOB, PRIMARY KEY (id, response_id)
)
"""
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, bytes INTEGER, stored REAL, used REAL, response BLOB, before BLOB, input BLOB,
    owner TEXT NOT NULL DEFAULT ''
)
""",
    "CREATE INDEX IF NOT EXISTS responses_by_owner ON responses (owner, bytes)",
    "CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, bytes)",
    "CREATE INDEX IF NOT EXISTS responses_by_age ON responses (stored)",
    _ITEMS_TABLE,
    "CREATE INDEX IF NOT EXISTS items_by_response ON items (response_id)",
    f"PRAGMA user_version = {VERSION}",
)
# Version 0 had one item of a name. Its index goes only if it is there: a server may have ended before it made one.
_FROM_VERSION_0 = (
    "DROP INDEX IF EXISTS items_by_response",
    "ALTER TABLE items RENAME TO items_0",
    _ITEMS_TABLE,
    "INSERT INTO items SELECT id, response_id, item FROM items_0",
    "DROP TABLE items_0",
)
# Until version 2 responses were anybody's.
_FROM_VERSION_1 = ("ALTER TABLE responses ADD COLUMN owner TEXT NOT NULL DEFAULT ''",)
_ITEM = msgspec.json.Decoder(Item)
_ITEMS = msgspec.json.Decoder(list[Item])
# Between two items of a stored list. No item has a line break: JSON escapes those in strings. Lists of older servers
# have commas only and are decoded in one piece.
_BETWEEN = b",\n"


class _Output(msgspec.Struct):
    output: list[msgspec.Raw]


_OUTPUT = msgspec.json.Decoder(_Output)


class Conversation(NamedTuple):
    """Items that belong together; ``n_bytes`` is their size as JSON."""

    items: list[Item]
    n_bytes: int


class ResponseStore:
    """An SQLite database in memory, or in the file ``path``, which a later server takes over.

    Each response is kept with the whole conversation before it, so that it can be continued whatever became of earlier
    ones, and is its ``owner``'s alone: for everybody else there is no such response. Beyond ``max_count`` or
    ``max_bytes`` whoever has most gives up what it read or continued least recently, so that nobody can push another
    one's responses out; after ``max_age_seconds`` every one is forgotten. A thread of the store's own reads and writes.
    Where another process holds the file for longer than BUSY_SECONDS, what needs it raises StoreUnavailable.
    """

    def __init__(self, config: ResponsesConfig) -> None:
        """Raises ConfigError when ``path`` cannot be opened."""
        self._max_count = config.max_count
        self._max_bytes = config.max_bytes
        self._max_age_seconds = config.max_age_seconds
        try:
            path = ":memory:"
            if config.path is not None:
                path = os.path.abspath(config.path)
                # conversations are for their server to read: SQLite would ask the umask, also for files beside it
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._close = weakref.finalize(self, self._db.close)
            self._prepare()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise ConfigError(f"responses.path: {error}") from error
        self._thread = ThreadPoolExecutor(1, "llamafast-responses")

    def close(self) -> None:
        """Also what the end of the process does."""
        self._thread.shutdown()
        self._close()

    async def put(self, owner: str, response: Response, before: Sequence[Item], given: Sequence[Item]) -> bool:
        """Keep a response that is complete; ``before`` and ``given`` are what it answered. Whether it is there now:
        nothing that was generated is lost to a database that cannot be written."""
        try:
            return await self._run(self._put, owner, response, before, given)
        except StoreUnavailable as error:
            log.error("response %s is not stored: %s", response.id, error)
            return False

    async def response(self, owner: str, response_id: str) -> bytes | None:
        """The Response object as JSON."""
        row = await self._run(self._row, "response", owner, response_id)
        return None if row is None else row[0]

    async def input(self, owner: str, response_id: str) -> Conversation | None:
        """The items that the response's own request brought."""
        return await self._run(self._input, owner, response_id)

    async def conversation(self, owner: str, response_id: str) -> Conversation | None:
        """All items up to and with the response's output."""
        return await self._run(self._conversation, owner, response_id)

    async def items(self, owner: str, item_ids: Iterable[str]) -> dict[str, Item]:
        """Those of ``item_ids`` that are input or output items of any of the owner's responses; of equal names the
        newest."""
        return await self._run(self._items, owner, item_ids)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Whether there was such a response."""
        return await self._run(self._delete, owner, response_id)

    async def count(self) -> int:
        return await self._run(self._count)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work`` in the store's thread. Raises StoreUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store of responses does not answer: {error}") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        # a table that others refer to is replaced; inside a transaction this cannot be said
        self._db.execute("PRAGMA foreign_keys = OFF")
        with self._db:
            # all or nothing, and by one of the servers that start at once
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            old = self._db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'items'").fetchone()[0]
            migrations = (_FROM_VERSION_0, _FROM_VERSION_1)[version:] if old else ()
            for statement in (*chain.from_iterable(migrations), *_SCHEMA):
                self._db.execute(statement)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._forget_some()
        self._db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")

    def _put(self, owner: str, response: Response, before: Sequence[Item], given: Sequence[Item]) -> bool:
        blobs = [msgspec.json.encode(response), _encoded_list(before), _encoded_list(given)]
        now = time.time()
        items = {item["id"]: msgspec.json.encode(item) for item in given}
        items |= {item.id: msgspec.json.encode(item) for item in response.output}
        n_bytes = sum(map(len, [*blobs, *items.values()]))
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO responses (id, bytes, stored, used, response, before, input, owner) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (response.id, n_bytes, now, now, *blobs, owner),
            )
            self._db.executemany(
                "INSERT INTO items VALUES (?, ?, ?)", [(item_id, response.id, item) for item_id, item in items.items()]
            )
            self._forget_some()
            return bool(self._db.execute("SELECT count(*) FROM responses WHERE id = ?", (response.id,)).fetchone()[0])

    def _input(self, owner: str, response_id: str) -> Conversation | None:
        row = self._row("input", owner, response_id)
        return None if row is None else Conversation(_decoded_list(row[0]), len(row[0]))

    def _conversation(self, owner: str, response_id: str) -> Conversation | None:
        row = self._row("before, input, response", owner, response_id)
        if row is None:
            return None
        before, given, response = row
        output = _OUTPUT.decode(response).output
        items = [*_decoded_list(before), *_decoded_list(given), *map(_ITEM.decode, output)]
        return Conversation(items, sum(map(len, row)))

    def _items(self, owner: str, item_ids: Iterable[str]) -> dict[str, Item]:
        oldest = time.time() - self._max_age_seconds
        found: dict[str, Item] = {}
        for item_id in item_ids:
            row = self._db.execute(
                "SELECT item FROM items JOIN responses ON responses.id = response_id "
                "WHERE items.id = ? AND owner = ? AND stored > ? ORDER BY stored DESC, items.rowid DESC LIMIT 1",
                (item_id, owner, oldest),
            ).fetchone()
            if row is not None:
                found[item_id] = _ITEM.decode(row[0])
        return found

    def _delete(self, owner: str, response_id: str) -> bool:
        if not _is_text(response_id):
            return False
        done = self._db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (response_id, owner))
        return done.rowcount > 0

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM responses").fetchone()[0])

    def _row(self, columns: str, owner: str, response_id: str) -> tuple[bytes, ...] | None:
        if not _is_text(response_id):
            return None
        now = time.time()
        row: tuple[bytes, ...] | None = self._db.execute(
            f"SELECT {columns} FROM responses WHERE id = ? AND owner = ? AND stored > ?",
            (response_id, owner, now - self._max_age_seconds),
        ).fetchone()
        if row is not None:
            # what is read is not refused because somebody else writes
            with suppress(sqlite3.OperationalError):
                self._db.execute("UPDATE responses SET used = ? WHERE id = ?", (now, response_id))
        return row

    def _forget_some(self) -> None:
        """What is too old, then what the owner of most has not used for longest, until the rest is within bounds."""
        self._db.execute("DELETE FROM responses WHERE stored <= ?", (time.time() - self._max_age_seconds,))
        while (too_much := self._too_much()) is not None:
            self._db.execute(
                "DELETE FROM responses WHERE id = (SELECT id FROM responses WHERE owner = "
                f"(SELECT owner FROM responses GROUP BY owner ORDER BY {too_much} DESC LIMIT 1) ORDER BY used LIMIT 1)"
            )

    def _too_much(self) -> str | None:
        """What there is too much of, as SQL."""
        count, n_bytes = self._db.execute("SELECT count(*), total(bytes) FROM responses").fetchone()
        if count > self._max_count:
            return "count(*)"
        return "total(bytes)" if n_bytes > self._max_bytes else None


def _is_text(response_id: str) -> bool:
    """A path may hold half a surrogate pair, which no response is named by and SQLite does not take."""
    try:
        response_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded_list(items: Sequence[Item]) -> bytes:
    """One by one, so that no call keeps the GIL for a whole conversation."""
    return b"[%b]" % _BETWEEN.join([msgspec.json.encode(item) for item in items])


def _decoded_list(blob: bytes) -> list[Item]:
    """What ``_encoded_list`` made, one by one too."""
    items: list[Item] = []
    at, last = 1, len(blob) - 1
    while at < last:
        end = blob.find(_BETWEEN, at)
        end = last if end < 0 else end
        items += _ITEMS.decode(b"[%b]" % blob[at:end])
        at = end + len(_BETWEEN)
    return items
