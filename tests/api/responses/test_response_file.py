"""The file that responses are kept in: of an older server, half migrated, with too many, for nobody else to read."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.blank_response import blank_response

from llamafast.api.responses import store as store_module
from llamafast.api.responses.events import ReasoningItem
from llamafast.api.responses.schema import Response
from llamafast.api.responses.store import ResponseStore
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


# what version 1 made of that
VERSION_1 = (
    "ALTER TABLE items RENAME TO items_0",
    """
    CREATE TABLE items (
        id TEXT, response_id TEXT REFERENCES responses (id) ON DELETE CASCADE, item BLOB, PRIMARY KEY (id, response_id)
    )
    """,
    "INSERT INTO items SELECT id, response_id, item FROM items_0",
    "DROP TABLE items_0",
    "CREATE INDEX items_by_response ON items (response_id)",
    "PRAGMA user_version = 1",
)


def names_in(path: Path) -> set[tuple[str]]:
    with sqlite3.connect(path) as db:
        names = set(db.execute("SELECT name FROM sqlite_schema"))
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()
    return names


async def test_a_file_whose_server_ended_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "responses.sqlite"
    config = ResponsesConfig(path=str(path))
    make_old(path, "DROP INDEX items_by_response")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_SCHEMA", (*store_module._SCHEMA, "no statement"))
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


@pytest.mark.parametrize("more", [(), VERSION_1], ids=["version 0", "version 1"])
async def test_a_file_of_an_older_server(tmp_path: Path, more: tuple[str, ...]) -> None:
    path = tmp_path / "responses.sqlite"
    blob = make_old(path, *more)
    for _ in range(2):  # the second server finds what the first one made
        store = ResponseStore(ResponsesConfig(path=str(path)))
        assert await store.response("", "r0") == blob
        assert (await store.items("", ["shared"]))["shared"]["content"] == "0"
        assert await store.put("", response("r1"), [], [{"id": "shared", "content": "1"}])
        assert (await store.items("", ["shared"]))["shared"]["content"] == "1"
        assert await store.delete("", "r1")
        assert (await store.items("", ["shared"]))["shared"]["content"] == "0"
        store.close()
    ResponseStore(ResponsesConfig(path=str(tmp_path / "new"))).close()
    assert names_in(path) == names_in(tmp_path / "new")


def test_a_file_of_a_newer_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    ResponseStore(ResponsesConfig(path=str(path))).close()
    newer = store_module.VERSION + 1
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {newer}")
        db.execute("DROP INDEX responses_by_age")
    db.close()
    names = names_in(path)
    with pytest.raises(ConfigError, match=rf"^responses\.path: .*version {newer}"):
        ResponseStore(ResponsesConfig(path=str(path)))
    assert names_in(path) == names
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (newer,)
    db.close()


async def test_responses_of_an_older_server_count(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    make_old(path)
    store = ResponseStore(ResponsesConfig(path=str(path), max_count=1))
    assert await store.count() == 1
    assert await store.put("", response("r1"), [], [])
    assert await store.count() == 1
    assert await store.response("", "r0") is None
    store.close()


async def test_a_file_whose_first_server_ended_before_it_made_a_table_of_items(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    blob = make_old(path, "DROP TABLE items", "DROP INDEX responses_by_age")
    store = ResponseStore(ResponsesConfig(path=str(path)))
    assert await store.response("", "r0") == blob
    assert await store.put("", response("r1"), [], [])
    store.close()


N_OWNERS, N_RESPONSES, N_LEFT = 50, 20_000, 4000
# To forget a response with one item is 190 steps of SQLite's. A look at all that are there would be 20,000 and more.
MAX_STEPS = 300


@pytest.mark.parametrize(
    "bounds", [{"max_count": N_LEFT}, {"max_bytes": 100 * N_LEFT}], ids=lambda bounds: next(iter(bounds))
)
def test_many_are_forgotten_at_once_when_a_bound_is_lowered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, int]
) -> None:
    path = tmp_path / "responses.sqlite"
    ResponseStore(ResponsesConfig(path=str(path))).close()
    owners = [f"o{i // 2 % (N_OWNERS - 1)}" if i % 2 else "most" for i in range(N_RESPONSES)]
    now = time.time()
    with sqlite3.connect(path) as db:
        rows = [(owner, str(i), 100, now, now + i) for i, owner in enumerate(owners)]
        db.executemany("INSERT INTO responses VALUES (?, ?, ?, ?, ?, '', '', '')", rows)
        db.execute("INSERT INTO items SELECT owner, 'item', id, '{}' FROM responses")
    db.close()
    steps, connect = 0, sqlite3.connect

    def hundred() -> None:
        nonlocal steps
        steps += 100

    def counting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_progress_handler(hundred, 100)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr("sqlite3.connect", counting)
        ResponseStore(ResponsesConfig(path=str(path), **bounds)).close()
    assert steps < MAX_STEPS * (N_RESPONSES - N_LEFT)
    with sqlite3.connect(path) as db:
        left = db.execute("SELECT owner, CAST(id AS INTEGER) FROM responses ORDER BY used").fetchall()
        assert db.execute("SELECT count(*) FROM items").fetchone() == (N_LEFT,)
    db.close()
    for owner in set(owners):
        newest = [i for i in range(N_RESPONSES) if owners[i] == owner][-N_LEFT // N_OWNERS :]
        assert [i for name, i in left if name == owner] == newest


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
