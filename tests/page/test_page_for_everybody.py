"""The page by keyboard, by screen reader, in the dark and on narrow screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.apps import make_app
from support.browser import Watched
from support.fake_engine import FakeEngine, say

from llamafast.engine.activity import DECODE, PROMPT, Activity, SeenSequence, SeenStep, StepPart

pytestmark = pytest.mark.page

AXE = Path(__file__).parents[2] / ".cache/page/node_modules/axe-core/axe.min.js"
ANSWER = """## A heading

Some `code`, a [link](https://example.com) and a list:

1. one
2. two

```python
print("a line that is rather long, so that it does not fit on a narrow screen and has to be scrolled to be read")
```

| a | b |
|---|---|
| 1 | 2 |
"""
COUNTERS = {
    "running": 2, "waiting": 3, "free_sequences": 6, "used_cells": 300, "reserved_cells": 700, "total_cells": 1000,
    "prompt_tokens": 50, "generated_tokens": 20, "steps": 10, "prefix_hits": 90, "prefix_hits_running": 40,
    "prefix_hits_ram": 50, "cache_bytes": 5000, "cache_max_bytes": 9000,
}  # fmt: skip


@pytest.fixture
def app() -> Any:
    engine = FakeEngine(say(ANSWER))
    engine.cached_tokens = 10
    engine.series = dict(COUNTERS)
    engine.distributions = {"inter_token_seconds": ((0.01, 0.02), [5, 0, 0], 0.02)}
    engine.seen = Activity(
        1,
        [SeenStep(0.004, [StepPart(0, 7, DECODE, 4, 3), StepPart(1, 8, PROMPT, 9, 0)])],
        [SeenSequence(7, 0, "decoding", 40, 52, 51, 100, 0, 0, 30, 9, 6, 2.5)],
        [SeenSequence(9, -1, "waiting", 10, 10, 0, 20, 0, 0, 0, 0, 0, 0.5)],
    )
    return make_app(engine)


async def faults(one: Watched) -> list[str]:
    """What axe-core finds: labels, contrast, order, roles."""
    await one.page.evaluate(AXE.read_text())
    found = await one.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{each['id']}: {node['html'][:120]}" for each in found["violations"] for node in each["nodes"]]


async def focused(one: Watched) -> str:
    what = "((e) => e.id || e.getAttribute('aria-label') || e.innerText)(document.activeElement)"
    return str(await one.page.evaluate(what))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1100])
async def test_axe_finds_no_fault(open_page, app, scheme, width):
    size = {"width": width, "height": 800}
    one = await (await open_page(app, viewport=size, color_scheme=scheme, reduced_motion="reduce")).ready()
    await one.ask("A question")
    await one.answered()
    assert await faults(one) == []
    await one.page.click("#open-settings")
    assert await faults(one) == []
    await one.page.keyboard.press("Escape")
    await one.page.click("#key")
    assert await faults(one) == []
    await one.page.keyboard.press("Escape")
    await one.page.click("#tab-engine")
    await one.page.wait_for_selector("#sequences .decoding")
    assert await faults(one) == []


@pytest.mark.parametrize("width", [320, 480, 768, 1920])
async def test_nothing_is_wider_than_the_screen(open_page, app, width):
    one = await (await open_page(app, viewport={"width": width, "height": 640})).ready()
    await one.ask("A question " + "withaverylongword" * 20)
    await one.answered()
    wide = "document.documentElement.scrollWidth - innerWidth"
    assert await one.page.evaluate(wide) <= 0
    for selector in ("#send", "#open-settings", "#model", "#tab-engine"):
        box = await one.page.locator(selector).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    if width < 700:
        assert not await one.page.locator("#sidebar").is_visible()
        await one.page.click("#drawer")
        assert await one.page.locator("#drawer").get_attribute("aria-expanded") == "true"
        assert await focused(one) == "new"
        await one.page.click("#drawer")
    await one.page.click("#tab-engine")
    await one.page.wait_for_selector("#sequences .decoding")
    assert await one.page.evaluate(wide) <= 0


async def test_a_conversation_that_is_chosen_on_a_narrow_screen_is_in_front(open_page, app):
    one = await (await open_page(app, viewport={"width": 320, "height": 640})).ready()
    drawer = one.page.locator("#drawer")
    for question in ("First", "Second"):
        await one.ask(question)
        await one.answered()
        await drawer.click()
        await one.page.click("#new")
        assert await drawer.get_attribute("aria-expanded") == "false"
        assert await focused(one) == "text"
    for title in ("First", "First"):
        await drawer.click()
        await one.page.click(f"#list .open:text-is('{title}')")
        assert not await one.page.locator("#sidebar").is_visible()
        assert await drawer.get_attribute("aria-expanded") == "false"
        assert await focused(one) == "thread"
    assert await one.page.locator(".message.user > .text").inner_text() == "First"


async def test_everything_is_reached_by_the_keyboard_in_the_order_in_which_it_stands(open_page, app):
    one = await (await open_page(app)).ready()
    keys = one.page.keyboard
    order = []
    for _ in range(11):
        await keys.press("Tab")
        order.append(await focused(one))
    skip, *rest = order
    assert skip == "Skip to the content"
    assert rest == [
        "tab-chat", "tab-engine", "model", "theme", "key", "new", "thread", "Watch the engine", "text", "open-settings",
    ]  # fmt: skip
    await keys.press("Shift+Tab")
    await keys.type("A question")
    await keys.press("Shift+Enter")
    await keys.type("of two lines")
    await keys.press("Enter")
    await one.answered()
    assert await one.page.locator(".message.user > .text").inner_text() == "A question\nof two lines"
    assert await one.page.locator("#said").inner_text() == "The answer is complete"
    await keys.press("Control+Shift+O")
    assert await one.page.locator(".welcome").is_visible()
    assert await focused(one) == "text"
    await keys.press("Alt+2")
    await one.page.wait_for_selector("#engine:not([hidden])")
    await keys.press("Alt+1")
    await one.page.wait_for_selector("#chat:not([hidden])")


async def test_colours_are_the_systems_or_as_chosen(open_page, app):
    one = await (await open_page(app, color_scheme="dark")).ready()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = await one.page.evaluate(ground)
    await one.page.click("#theme")
    assert await one.page.locator("#theme").get_attribute("aria-label") == "Colours: light"
    light = await one.page.evaluate(ground)
    assert light != dark
    await one.page.reload()
    assert await one.page.evaluate(ground) == light
    await one.page.click("#theme")
    assert await one.page.evaluate(ground) == dark
