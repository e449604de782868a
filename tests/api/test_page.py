"""The files of the page: what they weigh, what a browser may do with them, and who gets them."""

from __future__ import annotations

import gzip
import re
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

from llamafast import page
from llamafast.api.client_wait import ClientWaits
from llamafast.api.keys import Keys
from llamafast.api.loading import Gate
from llamafast.api.origins import Origins
from llamafast.config import ServerConfig
from llamafast.page import FILES, page_files

FOLDER = Path(str(files(page)))
KEPT = {
    # as npm has them: marked 18.2.1 lib/marked.esm.js, dompurify 3.5.0 dist/purify.min.js
    "marked.esm.js": "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de",
    "purify.min.js": "f69a46022ab1f53e969c8ebbca98172c8995785a9b3be72ea4a12d25b1a1bf67",
}
MOST_BYTES, MOST_PACKED = 150_000, 60_000
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "media-src data: blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types dompurify",
}


def test_the_page_is_small():
    sent = [page_files()[name] for name in FILES]
    assert sum(len(file.content) for file in sent) <= MOST_BYTES
    assert sum(len(file.packed) for file in sent) <= MOST_PACKED


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_library_is_the_one_that_was_looked_at(name):
    assert sha256((FOLDER / name).read_bytes()).hexdigest() == KEPT[name]
    assert (FOLDER / f"{name.split('.')[0]}.LICENSE").stat().st_size > 1000


def test_every_file_is_served_and_each_that_is_named_is_there():
    assert set(FILES) == {path.name for path in FOLDER.iterdir() if path.suffix in {".js", ".css", ".html", ".svg"}}
    own = {name: (FOLDER / name).read_text() for name in FILES if name not in KEPT}
    named = set(re.findall(r'"page/([a-z.]+)"', own["index.html"]))
    for text in own.values():
        named |= set(re.findall(r'from "\./([a-z.]+)"', text))
        # nothing is asked of anybody else
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\(|@import|fetch\(\"http", text)
    assert named == set(FILES) - {"index.html"}


def test_a_program_puts_no_text_into_the_page_as_markup_but_through_the_sanitizer():
    for name in set(FILES) - set(KEPT):
        text = (FOLDER / name).read_text()
        markup = re.findall(r"innerHTML.*|outerHTML.*|insertAdjacentHTML.*|document\.write.*|\beval\(.*", text)
        expected = ["innerHTML = DOMPurify.sanitize(marked.parse(text), RULES);"] if name == "markdown.js" else []
        assert markup == expected, name


async def test_the_page_comes_without_a_key_and_what_it_asks_for_does_not(tmp_path):
    file = tmp_path / "keys"
    file.write_text("secret\n")
    file.chmod(0o600)
    client = AsgiClient(make_app(FakeEngine(), keys=Keys(file)))
    index = await client.get("/")
    assert (index.status, index.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name in re.findall(r'"(page/[a-z0-9./]+)"', index.body.decode()):
        assert (await client.get(f"/{name}")).status == 200
    for path in ("/v1/models", "/engine/events"):
        assert (await client.get(path)).status == 401


async def test_a_browser_may_load_what_is_here_and_nothing_else(client):
    for path in ("/", "/page/app.js", "/page/style.css"):
        headers = (await client.get(path)).headers
        assert set(headers["content-security-policy"].split("; ")) == POLICY
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("accepts", ["", "gzip, br", "gzip;q=0, br", "gzip;q=0.5"])
async def test_a_file_is_sent_packed_to_who_takes_that_and_not_again(client, accepts):
    first = await client.get("/page/app.js", accept_encoding=accepts)
    packed = first.headers.get("content-encoding") == "gzip"
    assert packed == (accepts in ("gzip, br", "gzip;q=0.5"))
    content = gzip.decompress(first.body) if packed else first.body
    assert content == (FOLDER / "app.js").read_bytes()
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{16}(-gzip)?"', tag)
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/page/app.js", accept_encoding=accepts, if_none_match=f'"other", {tag}')
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get("/page/app.js", accept_encoding=accepts, if_none_match='"other"')).status == 200


async def test_under_its_digest_a_file_never_changes(client):
    index = (await client.get("/")).body.decode()
    (version,) = set(re.findall(r"page/([0-9a-f]{16})/", index))
    lasting = await client.get(f"/page/{version}/app.js")
    assert lasting.headers["cache-control"] == "public, max-age=31536000, immutable"
    # modules name each other from where they are
    assert lasting.body == (await client.get("/page/app.js")).body
    assert f"{version}/app.js" in page_files()


async def test_a_head_has_no_body_and_other_methods_and_names_are_refused(client):
    head = await client.get("/", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    assert (await client.get("/", method="POST")).status == 405
    for name in ("nothing.js", "../__init__.py", "__init__.py", ".", "", "marked.LICENSE"):
        assert (await client.get(f"/page/{name}")).status == 404, name


async def test_switched_off_there_are_lines_of_text_and_what_they_name_is_there():
    app = make_app(FakeEngine(), page=False)
    client = AsgiClient(app)
    index = await client.get("/")
    assert (index.status, index.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    for method, paths in re.findall(r"^(GET|POST) +(/.*)$", index.body.decode(), re.MULTILINE):
        for path in paths.split(", "):
            route, _ = app.routes.find(path)
            assert method in route.methods, path
    assert (await client.get("/page/app.js")).status == 404


async def test_strangers_names_and_origins_are_refused_as_everywhere():
    config = ServerConfig()
    client = AsgiClient(make_app(FakeEngine(), origins=Origins(config, ())))
    assert (await client.get("/", host="evil.example")).status == 403
    assert (await client.get("/engine/events", host="127.0.0.1", origin="https://evil.example")).status == 403
    assert (await client.get("/", host="127.0.0.1:8000")).status == 200


async def test_while_the_model_loads_the_page_is_there_already():
    config = ServerConfig()
    client = AsgiClient(Gate(ClientWaits(config), config))
    assert (await client.get("/")).status == 200
    assert (await client.get("/page/app.js")).status == 200
    assert (await client.get("/page/nothing.js")).status == 404
    assert (await client.get("/v1/models")).status == 503
