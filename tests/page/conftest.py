"""A Chromium of the system's packages, and what it must never do on the page."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.browser import Watched, served

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")

Open = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright  # only `make test-page` installs it

    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    assert path is not None, "there is no Chromium in the path: `make test-page` installs one where there is apt-get"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: Any) -> AsyncIterator[Open]:
    """A function from an ASGI application, or the address of a server, to its page in a context of its own. In the end
    none of them has had an error, broken its policy, run what a model said or asked anybody but its server for
    anything."""
    async with AsyncExitStack() as servers:
        opened: list[Watched] = []

        async def open_at(server: Any, view: str = "", **context: Any) -> Watched:
            url = server if isinstance(server, str) else await servers.enter_async_context(served(server))
            opened.append(watched := Watched(await browser.new_context(**context), url))
            await watched.begin(view)
            return watched

        yield open_at
        try:
            for watched in opened:
                await watched.check()
        finally:
            # a server ends when its connections do
            for watched in opened:
                await watched.context.close()
