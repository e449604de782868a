"""Responses that clients may read again or continue: bounded by number, bytes and age."""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from llamafast.api.schema.responses import Response
from llamafast.chat.items import Item
from llamafast.config import ResponsesConfig
from llamafast.errors import ConfigError

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, bytes INTEGER, stored REAL, used REAL, response BLOB, before BLOB, input BLOB
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, bytes);
CREATE INDEX IF NOT EXISTS responses_by_age ON responses (stored);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, response_id TEXT REFERENCES responses (id) ON DELETE CASCADE, item BLOB
);
CREATE INDEX IF NOT EXISTS items_by_response ON items (response_id);
"""
_ITEM = msgspec.json.Decoder(Item)
_ITEMS = msgspec.json.Decoder(list[Item])


class Conversation(NamedTuple):
    """All items up to and with a response's output; ``n_bytes`` is their size as JSON."""

    items: list[Item]
    n_bytes: int


class ResponseStore:
    """An SQLite database in memory, or in the file ``path``, which a later server takes over.

    Each response is kept with the whole conversation before it, so that it can be continued whatever became of earlier
    ones. Beyond ``max_count`` or ``max_bytes`` the ones least recently read or continued go; after ``max_age_seconds``
    every one is forgotten.
    """

    def __init__(self, config: ResponsesConfig) -> None:
        """Raises ConfigError when ``path`` cannot be opened."""
        self._max_count = config.max_count
        self._max_bytes = config.max_bytes
        self._max_age_seconds = config.max_age_seconds
        try:
            self._db = sqlite3.connect(config.path or ":memory:", isolation_level=None, check_same_thread=False)
            self._close = weakref.finalize(self, self._db.close)
            self._db.executescript(_SCHEMA)
            self._forget_some()
        except sqlite3.Error as error:
            raise ConfigError(f"responses.path: {error}") from error

    def close(self) -> None:
        """Also what the end of the process does."""
        self._close()

    def put(self, response: Response, before: Sequence[Item], given: Sequence[Item]) -> None:
        """Keep a response that is complete; ``before`` and ``given`` are what it answered."""
        blobs = [msgspec.json.encode(part) for part in (response, before, given)]
        now = time.time()
        items = {item["id"]: msgspec.json.encode(item) for item in [*given, *msgspec.to_builtins(response.output)]}
        n_bytes = sum(map(len, [*blobs, *items.values()]))
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)",
                (response.id, n_bytes, now, now, *blobs),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                [(item_id, response.id, item) for item_id, item in items.items()],
            )
            self._forget_some()

    def response(self, response_id: str) -> bytes | None:
        """The Response object as JSON."""
        row = self._row("response", response_id)
        return None if row is None else bytes(row[0])

    def input(self, response_id: str) -> list[Item] | None:
        """The items that the response's own request brought."""
        row = self._row("input", response_id)
        return None if row is None else _ITEMS.decode(row[0])

    def conversation(self, response_id: str) -> Conversation | None:
        row = self._row("before, input, response", response_id)
        if row is None:
            return None
        before, given, response = row
        output = msgspec.json.decode(response)["output"]
        items = [*_ITEMS.decode(before), *_ITEMS.decode(given), *output]
        return Conversation(items, sum(map(len, row)))

    def item(self, item_id: str) -> Item | None:
        """An input or output item of any response."""
        row = self._db.execute(
            "SELECT item FROM items JOIN responses ON responses.id = response_id WHERE items.id = ? AND stored > ?",
            (item_id, time.time() - self._max_age_seconds),
        ).fetchone()
        return None if row is None else _ITEM.decode(row[0])

    def delete(self, response_id: str) -> bool:
        """Whether there was such a response."""
        return self._db.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM responses").fetchone()[0])

    def _row(self, columns: str, response_id: str) -> tuple[bytes, ...] | None:
        now = time.time()
        row: tuple[bytes, ...] | None = self._db.execute(
            f"UPDATE responses SET used = ? WHERE id = ? AND stored > ? RETURNING {columns}",
            (now, response_id, now - self._max_age_seconds),
        ).fetchone()
        return row

    def _forget_some(self) -> None:
        """What is too old, then what was not used for longest, until the rest is within bounds."""
        self._db.execute("DELETE FROM responses WHERE stored <= ?", (time.time() - self._max_age_seconds,))
        while self._is_full():
            self._db.execute("DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY used LIMIT 1)")

    def _is_full(self) -> bool:
        count, n_bytes = self._db.execute("SELECT count(*), total(bytes) FROM responses").fetchone()
        return bool(count > self._max_count or n_bytes > self._max_bytes)
