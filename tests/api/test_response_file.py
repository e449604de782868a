"""The file that responses are kept in: of an older server, half migrated, for nobody else to read."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.blank_response import blank_response

from llamafast.api import response_store
from llamafast.api.response_store import ResponseStore
from llamafast.api.schema.response_events import ReasoningItem
from llamafast.api.schema.responses import Response
from llamafast.config import ResponsesConfig
from llamafast.errors import ConfigError


def answer(name: str) -> ReasoningItem:
    return ReasoningItem(id=f"{name}_item", status="completed", summary=[], content=[])


def response(name: str) -> Response:
    return msgspec.structs.replace(blank_response(name), status="completed", output=[answer(name)])


# as version 0 made it
OLD_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE responses (
    id TEXT PRIMARY KEY, bytes INTEGER, stored REAL, used REAL, response BLOB, before BLOB, input BLOB
);
CREATE INDEX responses_by_use ON responses (used, bytes);
CREATE INDEX responses_by_age ON responses (stored);
CREATE TABLE items (
    id TEXT PRIMARY KEY, response_id TEXT REFERENCES responses (id) ON DELETE CASCADE, item BLOB
);
CREATE INDEX items_by_response ON items (response_id);
"""


def make_old(path: Path, *more: str) -> bytes:
    """A file of version 0 with a response, which it returns, and what ``more`` makes of it."""
    old, now = sqlite3.connect(path), time.time()
    old.executescript(OLD_SCHEMA)
    blob = msgspec.json.encode(response("r0"))
    old.execute("INSERT INTO responses VALUES ('r0', 100, ?, ?, ?, '[]', '[]')", (now, now, blob))
    old.execute("INSERT INTO items VALUES ('shared', 'r0', ?)", (b'{"id":"shared","content":"0"}',))
    old.commit()
    for statement in more:
        old.execute(statement)
    old.commit()
    old.close()
    return blob


async def test_a_file_whose_server_ended_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "responses.sqlite"
    config = ResponsesConfig(path=str(path))
    make_old(path, "DROP INDEX items_by_response")
    with monkeypatch.context() as patch:
        patch.setattr(response_store, "_SCHEMA", (*response_store._SCHEMA, "no statement"))
        with pytest.raises(ConfigError, match="syntax error"):
            ResponseStore(config)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
        assert db.execute("SELECT name FROM sqlite_schema WHERE name = 'items_by_response'").fetchone() is None
    db.close()
    store = ResponseStore(config)
    assert (await store.items("", ["shared"]))["shared"]["content"] == "0"
    assert await store.delete("", "r0")
    assert await store.items("", ["shared"]) == {}
    store.close()


async def test_a_file_of_an_older_server(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    blob = make_old(path)
    for _ in range(2):  # the second server finds what the first one made
        store = ResponseStore(ResponsesConfig(path=str(path)))
        assert await store.response("", "r0") == blob
        assert (await store.items("", ["shared"]))["shared"]["content"] == "0"
        assert await store.put("", response("r1"), [], [{"id": "shared", "content": "1"}])
        assert (await store.items("", ["shared"]))["shared"]["content"] == "1"
        assert await store.delete("", "r1")
        assert (await store.items("", ["shared"]))["shared"]["content"] == "0"
        store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_schema WHERE name = 'items_0'").fetchone() is None
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


def modes_in(folder: Path) -> list[int]:
    return [path.stat().st_mode & 0o777 for path in folder.iterdir()]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def test_nobody_else_may_read_the_file(tmp_path: Path, umask: None) -> None:
    store = ResponseStore(ResponsesConfig(path=str(tmp_path / "responses.sqlite")))
    await store.put("", response("r0"), [], [])
    assert modes_in(tmp_path) == [0o600] * 3
    store.close()
