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
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from llamafast.api.responses import payloads
from llamafast.api.responses.items import Item
from llamafast.api.responses.schema import Response
from llamafast.api.responses.stored_items import (
    Payloads,
    StowedItems,
    decoded_items,
    decoded_list,
    encoded_list,
    whole_size,
)
from llamafast.config import ResponsesConfig
from llamafast.errors import ConfigError, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

# How long a request waits for another process that holds the file.
BUSY_SECONDS = 0.1

# From 3 on items refer to payloads; of version 2 all else is the same.
VERSION = 3
_VERSION_WITH_OWNERS = 2

# Rows are found by owner and id together, so that a request never reads another owner's. What else is asked of a row
# is before its blobs: SQLite reads all that is before a column to come to it. An item is named by its client, so
# several responses may have items of one name. Triggers keep the totals, whichever server writes.
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS responses (
    owner TEXT, id TEXT, bytes INTEGER, stored REAL, used REAL, response BLOB, before BLOB, input BLOB,
    PRIMARY KEY (owner, id)
)
""",
    "CREATE INDEX IF NOT EXISTS responses_by_use ON responses (owner, used)",
    "CREATE INDEX IF NOT EXISTS responses_by_age ON responses (stored)",
    """
CREATE TABLE IF NOT EXISTS items (
    owner TEXT, id TEXT, response_id TEXT, item BLOB,
    FOREIGN KEY (owner, response_id) REFERENCES responses (owner, id) ON DELETE CASCADE
)
""",
    "CREATE INDEX IF NOT EXISTS items_by_name ON items (owner, id)",
    "CREATE INDEX IF NOT EXISTS items_by_response ON items (owner, response_id)",
    "CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, count INTEGER, bytes INTEGER) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS owners_by_count ON owners (count)",
    "CREATE INDEX IF NOT EXISTS owners_by_bytes ON owners (bytes)",
    "CREATE TABLE IF NOT EXISTS total (count INTEGER, bytes INTEGER)",
    "INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM total)",
    """
CREATE TRIGGER IF NOT EXISTS response_stored AFTER INSERT ON responses BEGIN
    INSERT INTO owners VALUES (new.owner, 1, new.bytes)
        ON CONFLICT (owner) DO UPDATE SET count = count + 1, bytes = bytes + new.bytes;
    UPDATE total SET count = count + 1, bytes = bytes + new.bytes;
END
""",
    """
CREATE TRIGGER IF NOT EXISTS response_forgotten AFTER DELETE ON responses BEGIN
    UPDATE owners SET count = count - 1, bytes = bytes - old.bytes WHERE owner = old.owner;
    DELETE FROM owners WHERE owner = old.owner AND count = 0;
    UPDATE total SET count = count - 1, bytes = bytes - old.bytes;
END
""",
    *payloads.SCHEMA,
    f"PRAGMA user_version = {VERSION}",
)
# Until version 2 responses were anybody's; version 0 had one item of a name. Its server may have ended before it made
# all of it.
_SET_ASIDE = (
    "CREATE TABLE IF NOT EXISTS items (id TEXT, response_id TEXT, item BLOB)",
    *(f"DROP INDEX IF EXISTS {name}" for name in ("responses_by_use", "responses_by_age", "items_by_response")),
    "ALTER TABLE responses RENAME TO old_responses",
    "ALTER TABLE items RENAME TO old_items",
)
_TAKE_OVER = (
    "INSERT INTO responses SELECT '', id, bytes, stored, used, response, before, input FROM old_responses",
    "INSERT INTO items SELECT '', id, response_id, item FROM old_items ORDER BY rowid",
    "DROP TABLE old_items",
    "DROP TABLE old_responses",
)
_ITEM = msgspec.json.Decoder(Item)


class _Output(msgspec.Struct):
    output: list[msgspec.Raw]


_OUTPUT = msgspec.json.Decoder(_Output)


class History(NamedTuple):
    """Items that belong together; ``n_bytes`` is their size as JSON."""

    items: list[Item]
    n_bytes: int


class _Row(NamedTuple):
    """Columns, and the payloads that are referred to in them."""

    columns: tuple[bytes, ...]
    payloads: Payloads

    def n_bytes(self) -> int:
        return sum(whole_size(column, self.payloads) for column in self.columns)


class ResponseStore:
    """An SQLite database in memory, or in the file ``path``, which a later server takes over.

    Each response is kept with the whole conversation before it, so that it can be continued whatever became of earlier
    ones, and is its ``owner``'s alone: for everybody else there is no such response, nor does finding that out read it.
    Long texts of media are kept, and count, once for all of an owner's responses.
    Beyond ``max_count`` or ``max_bytes`` whoever has most of it gives up what it read or continued least recently. So
    other owners' responses can push an owner down to an equal share of that bound, to within one response or medium;
    the more owners there are, the smaller the share. They take nothing from an owner that is below it. After
    ``max_age_seconds`` every response is forgotten. To forget one of n takes O(log n), besides what its own pages and
    items take.

    A thread of the store's own reads and writes. Where another process holds the file for longer than BUSY_SECONDS,
    what needs it raises StoreUnavailable.
    """

    def __init__(self, config: ResponsesConfig) -> None:
        """Raises ConfigError when ``path`` cannot be opened or is a newer server's."""
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
            raise ConfigError(f"responses.path: {path}: {getattr(error, 'strerror', None) or error}") from error
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
        return None if row is None else row.columns[0]

    async def input(self, owner: str, response_id: str) -> History | None:
        """The items that the response's own request brought."""
        return await self._run(self._input, owner, response_id)

    async def history(self, owner: str, response_id: str) -> History | None:
        """All items up to and with the response's output."""
        return await self._run(self._history, owner, response_id)

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
            if version > VERSION:
                raise ConfigError(
                    f"responses.path: the file is a newer server's, of version {version}; this one knows {VERSION}"
                )
            old = self._db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'responses'").fetchone()[0]
            anybodys = old and version < _VERSION_WITH_OWNERS
            for statement in (*_SET_ASIDE, *_SCHEMA, *_TAKE_OVER) if anybodys else _SCHEMA:
                self._db.execute(statement)
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._forget_some()
        self._db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")

    def _put(self, owner: str, response: Response, before: Sequence[Item], given: Sequence[Item]) -> bool:
        stowed = StowedItems()
        earlier, told = [stowed.encoded(item) for item in before], [stowed.encoded(item) for item in given]
        blobs = [msgspec.json.encode(response), encoded_list(earlier), encoded_list(told)]
        now = time.time()
        items = {item["id"]: blob for item, blob in zip(given, told, strict=True)}
        items |= {item.id: msgspec.json.encode(item) for item in response.output}
        n_bytes = sum(map(len, [*blobs, *items.values()]))
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (owner, response.id, n_bytes, now, now, *blobs),
            )
            self._db.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?)",
                [(owner, item_id, response.id, item) for item_id, item in items.items()],
            )
            payloads.keep(self._db, owner, response.id, stowed.payloads)
            self._forget_some()
            there = self._db.execute("SELECT 1 FROM responses WHERE owner = ? AND id = ?", (owner, response.id))
            return there.fetchone() is not None

    def _input(self, owner: str, response_id: str) -> History | None:
        row = self._row("input", owner, response_id)
        return None if row is None else History(decoded_list(row.columns[0], row.payloads), row.n_bytes())

    def _history(self, owner: str, response_id: str) -> History | None:
        row = self._row("before, input, response", owner, response_id)
        if row is None:
            return None
        before, given, response = row.columns
        output = _OUTPUT.decode(response).output
        items = [
            *decoded_list(before, row.payloads),
            *decoded_list(given, row.payloads),
            *map(_ITEM.decode, output),
        ]
        return History(items, row.n_bytes())

    def _items(self, owner: str, item_ids: Iterable[str]) -> dict[str, Item]:
        oldest = time.time() - self._max_age_seconds
        found: dict[str, bytes] = {}
        with self._db:
            self._db.execute("BEGIN")
            for item_id in item_ids:
                row = self._db.execute(
                    "SELECT item FROM items JOIN responses ON responses.owner = items.owner AND "
                    "responses.id = response_id WHERE items.owner = ? AND items.id = ? AND stored > ? "
                    "ORDER BY items.rowid DESC LIMIT 1",
                    (owner, item_id, oldest),
                ).fetchone()
                if row is not None:
                    (found[item_id],) = row
            texts = payloads.read(self._db, owner, found.values())
        return {item_id: item for item_id, blob in found.items() for item in decoded_items(blob, texts)}

    def _delete(self, owner: str, response_id: str) -> bool:
        if not _is_text(response_id):
            return False
        done = self._db.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, response_id))
        return done.rowcount > 0

    def _count(self) -> int:
        return int(self._db.execute("SELECT count FROM total").fetchone()[0])

    def _row(self, columns: str, owner: str, response_id: str) -> _Row | None:
        if not _is_text(response_id):
            return None
        now = time.time()
        with self._db:
            # of one moment: a server beside this one may forget the response, and its payloads with it
            self._db.execute("BEGIN")
            found = self._db.execute(
                f"SELECT {columns} FROM responses WHERE owner = ? AND id = ? AND stored > ?",
                (owner, response_id, now - self._max_age_seconds),
            ).fetchone()
            row = None if found is None else _Row(found, payloads.read(self._db, owner, found))
        if row is not None:
            # what is read is not refused because somebody else writes
            with suppress(sqlite3.OperationalError):
                self._db.execute("UPDATE responses SET used = ? WHERE owner = ? AND id = ?", (now, owner, response_id))
        return row

    def _forget_some(self) -> None:
        """What is too old, then what the owner of most has not used for longest, until the rest is within bounds."""
        self._db.execute("DELETE FROM responses WHERE stored <= ?", (time.time() - self._max_age_seconds,))
        while (too_much := self._too_much()) is not None:
            self._db.execute(
                "DELETE FROM responses WHERE rowid = (SELECT rowid FROM responses WHERE owner = "
                f"(SELECT owner FROM owners ORDER BY {too_much} DESC LIMIT 1) ORDER BY used LIMIT 1)"
            )

    def _too_much(self) -> str | None:
        """The total that is beyond its bound."""
        count, n_bytes = self._db.execute("SELECT count, bytes FROM total").fetchone()
        if count > self._max_count:
            return "count"
        return "bytes" if n_bytes > self._max_bytes else None


def _is_text(response_id: str) -> bool:
    """A path may hold half a surrogate pair, which no response is named by and SQLite does not take."""
    try:
        response_id.encode()
    except UnicodeEncodeError:
        return False
    return True
