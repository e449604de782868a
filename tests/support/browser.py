"""An application behind Granian for a browser, and a page of it that is watched for what it must not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from benchmarks.server import free_port

# What a page does before anything else of it: remember every break of its policy and whatever a hostile text would do,
# and agree to what it asks.
_WATCH = """
window.breaks = [];
addEventListener("securitypolicyviolation", (e) => breaks.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
window.ran = [];
for (const name of ["alert", "prompt"]) window[name] = (text) => { ran.push(text ?? name); };
window.confirm = () => true;
"""
SECONDS = 60


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The address of an ASGI application, on a port of its own."""
    port = free_port()
    server = Server(
        app, interface=Interfaces.ASGINL, address="127.0.0.1", port=port, log_level=LogLevels.critical, backpressure=64
    )
    serving = asyncio.create_task(server.serve())
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            break
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if hasattr(app, "drain"):
            app.drain()
        server.stop()
        await asyncio.wait_for(serving, SECONDS)


class Watched:
    """A page, and what came of it; ``may_fail`` are parts of messages of its console that a test expects."""

    def __init__(self, context: Any, origin: str) -> None:
        self.context = context
        self.origin = origin
        self.may_fail: list[str] = []
        self.told: list[str] = []
        self.asked: list[str] = []

    async def begin(self, view: str) -> None:
        """Open the page at a view of it."""
        await self.context.add_init_script(_WATCH)
        self.page = page = await self.context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda message: self.told.append(f"{message.type} {message.text}"))
        page.on("pageerror", lambda error: self.told.append(f"error {error}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("dialog", lambda dialog: self.told.append(f"error dialog {dialog.message}"))
        await page.goto(f"{self.origin}/{view}")

    async def until(self, what: str) -> None:
        """Wait for an expression to be true there; Playwright's own way is an eval, which the page's policy forbids."""
        async with asyncio.timeout(SECONDS):
            while not await self.page.evaluate(what):
                await asyncio.sleep(0.01)

    async def ready(self) -> Self:
        """Until it knows the server's models."""
        await self.until("document.querySelector('#model').value")
        return self

    async def ask(self, text: str) -> None:
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def answered(self) -> str:
        """The last answer, once it is complete."""
        await self.page.wait_for_selector("#stop", state="hidden")
        await self.page.wait_for_selector(".message.assistant:last-child .acts:not([hidden])")
        return str(await self.last(".text").inner_text())

    def last(self, selector: str) -> Any:
        """Of the last answer."""
        return self.page.locator(f".message.assistant:last-child > {selector}")

    async def check(self) -> None:
        foreign = [url for url in self.asked if not url.startswith((f"{self.origin}/", "data:", "blob:"))]
        faults = [one for one in self.told if one.startswith("error") and not any(m in one for m in self.may_fail)]
        found = foreign, *await self.page.evaluate("[window.breaks, window.ran]"), faults
        assert found == ([], [], [], []), found
