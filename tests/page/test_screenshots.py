"""The pictures of the documents: a chat, and the engine under load, of a real model.

Ordinarily they are only taken; `make screenshots` puts them into docs/.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.server import Server, serving

pytestmark = pytest.mark.page

SIZE = {"width": 1100, "height": 860}
SHARED = "You are the assistant of a harbour town's library. You answer in whole sentences, and you like the sea. " * 12
QUESTIONS = (
    "Tell a long story about the sea.",
    "Describe a storm in detail.",
    "Write a letter to a captain.",
    "List ten fish and describe each of them.",
    "Explain the tides at length.",
)


@pytest.fixture(scope="module")
def server(smollm2):
    def config(port: int) -> dict[str, object]:
        model = {"path": str(smollm2), "alias": "smollm2-135m", "n_ctx": 8192, "n_seq_max": 12, "threads": 1}
        return {"server": {"port": port}, "model": model | {"draft_model": "prompt-lookup-decoding"}}

    with serving(config, None) as server:
        yield server


class Load:
    """Clients that ask one question after the other, some of them with much to read first."""

    def __init__(self, server: Server, n: int) -> None:
        self._server = server
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(n)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, i: int) -> None:
        dice = random.Random(i)
        while not self._ended.wait(dice.random()):
            read = " ".join(str(dice.randrange(1000)) for _ in range(dice.choice((0, 0, 0, 30, 60))))
            messages = [
                {"role": "system", "content": SHARED},
                {"role": "user", "content": f"{dice.choice(QUESTIONS)} {read}"},
            ]
            body = {"messages": messages, "max_tokens": dice.choice((16, 40, 80)), "seed": i}
            connection = HTTPConnection("127.0.0.1", self._server.port, timeout=120)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            assert connection.getresponse().status == 200
            connection.close()


def keep(taken: bytes, name: str, folder: Path) -> None:
    """In few colours: what is drawn has no more."""
    picture = Image.open(BytesIO(taken))
    assert picture.size == (SIZE["width"], SIZE["height"])
    few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(folder / name, optimize=True)
    assert (folder / name).stat().st_size < 150_000


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(os.environ.get("LLAMAFAST_SCREENSHOTS") or tmp_path)


async def test_pictures_of_the_engine(open_page, server, folder):
    with Load(server, 13):
        light = await open_page(f"http://127.0.0.1:{server.port}", "#engine", viewport=SIZE)
        dark = await open_page(f"http://127.0.0.1:{server.port}", "#engine", viewport=SIZE, color_scheme="dark")
        for one in (light, dark):
            await one.until("document.querySelectorAll('#steps .number').length > 8")
            await one.until("document.querySelectorAll('#sequences .decoding').length > 4")
        await asyncio.sleep(20 if folder == Path("docs") else 1)
        for one, name in ((light, "page-engine.png"), (dark, "page-engine-dark.png")):
            keep(await one.page.screenshot(), name, folder)


async def test_pictures_of_a_chat(open_page, server, folder):
    for scheme, name in (("light", "page-chat.png"), ("dark", "page-chat-dark.png")):
        one = await (await open_page(f"http://127.0.0.1:{server.port}", viewport=SIZE, color_scheme=scheme)).ready()
        await one.page.click("#open-settings")
        await one.page.fill("#set-system", "You are a helpful assistant. You answer in Markdown.")
        await one.page.fill("#set-temperature", "0")
        await one.page.fill("#set-max_tokens", "180")
        await one.page.click("#settings .primary")
        for n, question in enumerate(
            ("Give me a list of four planets, with a sentence on each.", "Which is the largest?")
        ):
            await one.ask(question)
            await one.until(f"document.querySelectorAll('.message').length === {2 * n + 2}")
            await one.answered()
        keep(await one.page.screenshot(), name, folder)
