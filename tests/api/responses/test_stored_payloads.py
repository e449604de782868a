"""Pictures and sound in stored responses: kept once, read back as they were, gone with whoever refers to them."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.blank_response import blank_response

from llamafast.api.media_texts import encode_whole
from llamafast.api.responses import store as stores
from llamafast.api.responses.items import Item
from llamafast.api.responses.schema import Response
from llamafast.api.responses.store import ResponseStore
from llamafast.config import ResponsesConfig
from llamafast.engine.media import DetachedText

HEAD = "data:image/png;base64,"


def base64(seed: int, n_bytes: int = 150_000) -> str:
    return b64encode(random.Random(seed).randbytes(n_bytes)).decode()


def detached(text: str) -> DetachedText:
    """As the body of a request leaves it."""
    return DetachedText(HEAD, memoryview(b'"' + text.encode() + b'"')[1:-1])


def shown(url: str, name: str = "msg") -> Item:
    content = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    return {"type": "message", "role": "user", "content": content, "id": name}


def response(name: str) -> Response:
    return msgspec.structs.replace(blank_response(name), status="completed")


def whole(items: list[Item]) -> list[Any]:
    return [json.loads(encode_whole(item)) for item in items]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.fixture
def store(path: Path) -> ResponseStore:
    return ResponseStore(ResponsesConfig(path=str(path)))


def rows(path: Path, query: str) -> list[Any]:
    with sqlite3.connect(path) as db:
        found = db.execute(query).fetchall()
        assert db.execute("SELECT bytes FROM total").fetchone() == (
            db.execute("SELECT coalesce(sum(bytes), 0) FROM owners").fetchone()
        )
    db.close()
    return found


def kept(path: Path) -> dict[str, set[str]]:
    """Digests by owner, as far as they are those of the texts that are there."""
    found: dict[str, set[str]] = {}
    pieces: dict[tuple[str, str], bytes] = {}
    for owner, digest, start, n_bytes, piece in rows(path, "SELECT * FROM payloads ORDER BY owner, digest, start"):
        assert (start, n_bytes) == (len(pieces.get((owner, digest), b"")), len(piece))
        pieces[owner, digest] = pieces.get((owner, digest), b"") + piece
    for (owner, digest), text in pieces.items():
        assert sha256(text).hexdigest() == digest
        found.setdefault(owner, set()).add(digest)
    return found


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


async def test_a_picture_of_a_long_conversation_is_stored_once(store: ResponseStore, path: Path) -> None:
    picture = base64(1, 5 << 20)
    said: list[Item] = []
    for turn in range(20):
        told = shown(detached(picture) if turn % 2 else HEAD + picture, "m0") if turn < 2 else shown("https://x/", "m")
        assert await store.put("", response(f"r{turn}"), said, [told])
        history = await store.history("", f"r{turn}")
        assert history is not None
        said = history.items
    assert kept(path) == {"": {digest(picture)}}
    assert whole(said)[:3] == [shown(HEAD + picture, "m0")] * 2 + [shown("https://x/", "m")]
    ((n_bytes,),) = rows(path, "SELECT bytes FROM total")
    assert len(picture) < n_bytes < len(picture) + 200_000
    assert history is not None
    assert history.n_bytes > 2 * len(picture)
    store.close()
    ((n_pages, page_size),) = rows(path, "SELECT * FROM pragma_page_count, pragma_page_size")
    assert n_pages * page_size < 2 * len(picture)


@pytest.mark.parametrize("item", [
    shown(HEAD + base64(1)), shown("data:image/PNG;x=é\";base64," + base64(1)), shown(base64(1)),
    {"type": "input_audio", "id": "i"},
    {"role": "user", "id": "i", "content": [{"type": "input_audio", "input_audio": {"data": base64(2), "format": ""}}]},
    {"role": "user", "id": "i", "content": [{"type": "image", "source": {"type": "base64", "data": base64(2)}}]},
    {"type": "function_call_output", "id": "i", "call_id": "c", "output": shown(HEAD + base64(3))["content"]},
    {"type": "function_call_output", "id": "i", "call_id": "c", "output": [{"x": HEAD + base64(3)}]},
    {"type": "computer_call_output", "id": "i", "output": {"type": "computer_screenshot", "image_url": base64(4)}},
    {"type": "image_generation_call", "id": "i", "result": base64(4)},
    shown("\n".join([base64(5)] * 2)), shown(HEAD + "AAAA\n" + base64(5)), shown("https://x/" + base64(6)),
    shown("data:" + base64(6)), shown("data:,"), shown("é" * 5000), shown(HEAD + "\0" + digest("x") + "\0" * 5000),
    shown(HEAD + "\\u0000" * 5000), shown(HEAD + "AAAA"),
    {"role": "user", "id": "i", "content": HEAD + base64(7)},
    {"role": "user", "id": "i", "content": [{"type": "input_text", "text": base64(8) + "\0" + digest("x") + "\0"}]},
], ids=lambda item: str(item)[:60])  # fmt: skip
async def test_items_are_read_as_they_were_sent(store: ResponseStore, item: Item) -> None:
    assert await store.put("", response("r0"), [item], [item, item | {"id": "other"}])
    history, given = await store.history("", "r0"), await store.input("", "r0")
    assert history is not None
    assert given is not None
    assert whole(history.items) == [item, item, item | {"id": "other"}]
    assert whole(given.items) == whole(history.items)[1:]
    assert given.n_bytes == len(b"[%b]" % b",\n".join(map(encode_whole, given.items)))
    found = await store.items("", ["other", item["id"]])
    assert [whole([found[name]]) for name in ("other", item["id"])] == [[item | {"id": "other"}], [item]]
    store.close()


async def test_what_is_detached_and_what_is_not_is_the_same(store: ResponseStore, path: Path) -> None:
    """A body is cut where it is large enough; escapes may leave the first letters of base64 outside."""
    text = base64(1)
    for i, url in enumerate(
        [HEAD + text, detached(text), DetachedText(HEAD + text[:5], memoryview(text[5:].encode()))]
    ):
        assert await store.put("", response(f"r{i}"), [], [shown(url)])
        given = await store.input("", f"r{i}")
        assert given is not None
        assert whole(given.items) == [shown(HEAD + text)]
    for i, head in enumerate(["data:" + text[:9], HEAD + "AAAA\n"]):
        assert await store.put("", response(f"s{i}"), [], [shown(DetachedText(head, memoryview(text.encode())))])
        given = await store.input("", f"s{i}")
        assert given is not None
        assert whole(given.items) == [shown(head + text)]
    assert kept(path) == {"": {digest(text)}}
    store.close()


async def test_texts_that_are_read_again_are_detached_and_share_their_memory(store: ResponseStore) -> None:
    assert await store.put("", response("r0"), [], [shown(HEAD + base64(1), f"m{i}") for i in range(9)])
    history = await store.history("", "r0")
    found = await store.items("", [f"m{i}" for i in range(9)])
    assert history is not None
    for items in (history.items, list(found.values())):
        urls = [item["content"][1]["image_url"] for item in items]
        assert all(isinstance(url, DetachedText) and url == HEAD for url in urls)
        assert len({id(url.base64.obj) for url in urls}) == 1
    store.close()


async def test_it_is_hashed_once(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counting(data: Any) -> Any:
        hashed.append(len(data))
        return sha256(data)

    monkeypatch.setattr("llamafast.api.responses.stored_items.sha256", counting)
    assert await store.put("", response("r0"), [], [shown(HEAD + base64(1))])
    for i in range(3):
        history = await store.history("", f"r{i}")
        assert history is not None
        assert await store.put("", response(f"r{i + 1}"), history.items, [])
    assert len(hashed) == 1
    store.close()


async def test_it_goes_with_the_last_response_that_has_it(store: ResponseStore, path: Path) -> None:
    first, second = base64(1), base64(2)
    await store.put("", response("r0"), [], [shown(HEAD + first)])
    await store.put("", response("r1"), [shown(HEAD + first)], [shown(HEAD + second)])
    await store.put("", response("r2"), [], [shown("data:image/x," + second)])
    assert kept(path) == {"": {digest(first), digest(second)}}
    assert await store.delete("", "r0")
    assert kept(path) == {"": {digest(first), digest(second)}}
    assert await store.delete("", "r1")
    assert kept(path) == {"": {digest(second)}}
    assert await store.delete("", "r2")
    assert kept(path) == {}
    assert rows(path, "SELECT count, bytes FROM total") == [(0, 0)]
    assert rows(path, "SELECT * FROM payload_uses") == rows(path, "SELECT * FROM owners") == []
    store.close()


async def test_it_goes_with_age(store: ResponseStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put("", response("r0"), [], [shown(HEAD + base64(1))])
    later = time.time() + 1e6
    monkeypatch.setattr(stores, "time", SimpleNamespace(time=lambda: later))
    assert await store.history("", "r0") is None
    await store.put("", response("r1"), [], [])
    assert kept(path) == {}
    store.close()


async def test_it_counts_once_in_the_store_s_bytes(path: Path) -> None:
    picture = base64(1, 300_000)
    store = ResponseStore(ResponsesConfig(path=str(path), max_bytes=1_000_000))
    for i in range(9):
        assert await store.put("", response(f"r{i}"), [shown(HEAD + picture)], [])
    assert await store.count() == 9
    assert await store.put("", response("r9"), [], [shown(HEAD + base64(2, 300_000))])
    assert await store.count() == 10
    # what has been used least goes, until the picture of all of those is no use to anybody
    assert await store.put("", response("r10"), [], [shown(HEAD + base64(3, 300_000))])
    assert await store.count() == 2
    assert kept(path) == {"": {digest(base64(2, 300_000)), digest(base64(3, 300_000))}}
    # too large by itself
    assert not await store.put("", response("r11"), [], [shown(HEAD + base64(4, 900_000))])
    assert kept(path) == {}
    assert rows(path, "SELECT count, bytes FROM total") == [(0, 0)]
    store.close()


async def test_every_owner_keeps_their_own(store: ResponseStore, path: Path) -> None:
    picture = base64(1)
    for owner in ("a", "b"):
        await store.put(owner, response("r0"), [], [shown(HEAD + picture, "msg")])
    assert kept(path) == {"a": {digest(picture)}, "b": {digest(picture)}}
    counted = rows(path, "SELECT bytes FROM owners")
    assert counted[0] == counted[1]
    assert counted[0][0] > len(picture)
    # what one owner has read another one may be told of by the server, never by the store
    history = await store.history("a", "r0")
    assert history is not None
    await store.put("c", response("r0"), history.items, [])
    assert await store.delete("a", "r0")
    assert kept(path) == {"b": {digest(picture)}, "c": {digest(picture)}}
    assert await store.items("a", ["msg"]) == {}
    again = await store.history("c", "r0")
    assert again is not None
    assert whole(again.items) == [shown(HEAD + picture, "msg")]
    store.close()


# as version 2 made it
VERSION_2 = """
PRAGMA journal_mode = WAL;
CREATE TABLE responses (
    owner TEXT, id TEXT, bytes INTEGER, stored REAL, used REAL, response BLOB, before BLOB, input BLOB,
    PRIMARY KEY (owner, id)
);
CREATE INDEX responses_by_use ON responses (owner, used);
CREATE INDEX responses_by_age ON responses (stored);
CREATE TABLE items (
    owner TEXT, id TEXT, response_id TEXT, item BLOB,
    FOREIGN KEY (owner, response_id) REFERENCES responses (owner, id) ON DELETE CASCADE
);
CREATE INDEX items_by_name ON items (owner, id);
CREATE INDEX items_by_response ON items (owner, response_id);
CREATE TABLE owners (owner TEXT PRIMARY KEY, count INTEGER, bytes INTEGER) WITHOUT ROWID;
CREATE INDEX owners_by_count ON owners (count);
CREATE INDEX owners_by_bytes ON owners (bytes);
CREATE TABLE total (count INTEGER, bytes INTEGER);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER response_stored AFTER INSERT ON responses BEGIN
    INSERT INTO owners VALUES (new.owner, 1, new.bytes)
        ON CONFLICT (owner) DO UPDATE SET count = count + 1, bytes = bytes + new.bytes;
    UPDATE total SET count = count + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER response_forgotten AFTER DELETE ON responses BEGIN
    UPDATE owners SET count = count - 1, bytes = bytes - old.bytes WHERE owner = old.owner;
    DELETE FROM owners WHERE owner = old.owner AND count = 0;
    UPDATE total SET count = count - 1, bytes = bytes - old.bytes;
END;
PRAGMA user_version = 2;
"""


async def test_a_file_of_version_2_is_read_and_continued(path: Path) -> None:
    item = shown(HEAD + base64(1))
    blob, now = msgspec.json.encode(item), time.time()
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_2)
        row = ("a", "r0", 3 * len(blob), now, now, msgspec.json.encode(response("r0")), b"[%b]" % blob, b"[%b]" % blob)
        db.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO items VALUES ('a', 'msg', 'r0', ?)", (blob,))
    db.close()
    store = ResponseStore(ResponsesConfig(path=str(path)))
    ResponseStore(ResponsesConfig(path=str(path.with_name("new")))).close()
    names = "SELECT name FROM sqlite_schema ORDER BY name"
    assert rows(path, names) == rows(path.with_name("new"), names)
    history = await store.history("a", "r0")
    assert history is not None
    assert history.items == [item, item]
    assert await store.items("a", ["msg"]) == {"msg": item}
    assert kept(path) == {}
    assert await store.put("a", response("r1"), history.items, [])
    assert kept(path) == {"a": {digest(base64(1))}}
    assert await store.delete("a", "r0")
    history = await store.history("a", "r1")
    assert history is not None
    assert whole(history.items) == [item, item]
    store.close()
