"""Conversations in a browser that is left, closed, shared by two tabs, full, or that keeps nothing at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.fake_engine import INFO, FakeEngine, play, say

from llamafast.engine.types import Event

pytestmark = pytest.mark.page

SAYS_SOME = "document.querySelector('.assistant > .text')?.innerText === 'Some'"
KEPT = """
new Promise((resolve) => {
  indexedDB.open("llamafast").onsuccess = ({ target }) => {
    const all = target.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => resolve(all.result.map((one) => Object.values(one.messages).map(({ content }) => content)));
  };
})
"""


def says_some_and_waits() -> FakeEngine:
    return FakeEngine(play([Event(0, "Some", 1)], asyncio.Event()))


async def titles(one: Any, n: int) -> list[str]:
    await one.until(f"document.querySelectorAll('#list li').length === {n}")
    return list(await one.page.locator("#list .open").all_inner_texts())


@pytest.mark.parametrize("nested", [">" * 9000, "- " * 4000 + "a", "*_" * 4000])
async def test_an_answer_nested_too_deeply_is_text_and_the_page_goes_on(open_page, nested):
    engine = FakeEngine(say(nested), info=replace(INFO, max_seq_len=30_000))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("A question")
    await one.answered()
    assert not await one.last(".wrong").is_visible()
    await one.page.reload()
    await one.ready()
    await one.answered()


async def test_a_conversation_that_is_deleted_while_it_is_answered_stays_away(open_page):
    engine = says_some_and_waits()
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("A question")
    await one.until(SAYS_SOME)
    await one.page.click("#list .icon")
    await one.page.wait_for_selector(".welcome")
    assert await titles(one, 0) == []
    assert await one.page.evaluate(KEPT) == []
    assert engine.generations[0].cancelled


async def test_an_answer_that_is_left_for_another_conversation_is_there_again(open_page):
    engine = FakeEngine(say("first"))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("A")
    await one.answered()
    await one.page.click("#new")
    engine.script = play([Event(0, "Some", 1)], asyncio.Event())
    await one.ask("B")
    await one.until(SAYS_SOME)
    await one.page.click("#list .open:text-is('A')")
    await one.until("document.querySelector('.assistant > .text')?.innerText === 'first'")
    await one.page.click("#list .open:text-is('B')")
    await one.until(SAYS_SOME)
    assert "you ended it" in await one.last(".cost").inner_text()


async def test_what_has_come_of_an_answer_outlives_the_tab(open_page):
    more = asyncio.Event()
    engine = FakeEngine(play([Event(0, "Some", 1)], more, [Event(0, " more", 1)], asyncio.Event()))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("A question")
    await one.until(SAYS_SOME)
    # it is kept about once a second, when something comes
    await asyncio.sleep(1.1)
    more.set()
    async with asyncio.timeout(30):
        while await one.page.evaluate(KEPT) != [["A question", "Some more"]]:
            await asyncio.sleep(0.02)


async def test_two_tabs_lose_nothing_of_each_other(open_page):
    one = await (await open_page(make_app(FakeEngine(say("An answer"))))).ready()
    await one.ask("A")
    await one.answered()
    other = await one.context.new_page()
    await other.goto(one.origin)
    await other.wait_for_selector(".message.assistant .acts")
    await one.ask("B")
    await one.until("document.querySelectorAll('.message').length === 4")
    await one.answered()
    await other.fill("#text", "C")
    await other.press("#text", "Enter")
    async with asyncio.timeout(30):
        while sorted(*await one.page.evaluate(KEPT)) != ["A", *3 * ["An answer"], "B", "C"]:
            await asyncio.sleep(0.02)
    await other.close()


async def test_a_tab_that_saw_half_an_answer_does_not_put_that_in_place_of_the_whole(open_page):
    first, rest = asyncio.Event(), asyncio.Event()
    said = [Event(0, "Some", 1)], first, [Event(0, " more", 1)], rest, [Event(0, " and the rest", 1)]
    engine = FakeEngine(play(*said, [Event(0, "", 1, "stop")]))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("A")
    await one.until(SAYS_SOME)
    await asyncio.sleep(1.1)
    first.set()
    await one.until("document.querySelector('.assistant > .text')?.innerText === 'Some more'")
    engine.script = say("An answer")
    other = await one.context.new_page()
    await other.goto(one.origin)
    await other.wait_for_selector(".message.assistant .acts")
    rest.set()
    await one.answered()
    await other.fill("#text", "B")
    await other.press("#text", "Enter")
    async with asyncio.timeout(30):
        while sorted(*await one.page.evaluate(KEPT)) != ["A", "An answer", "B", "Some more and the rest"]:
            await asyncio.sleep(0.02)
    await other.close()


async def test_where_the_browser_has_no_room_the_old_ones_stay_and_can_be_deleted(open_page):
    one = await (await open_page(make_app(FakeEngine(say("An answer"))))).ready()
    for name in "AB":
        await one.ask(name)
        await one.answered()
        await one.page.click("#new")
    await one.page.evaluate("IDBObjectStore.prototype.put = function () { this.transaction.abort(); }; 0")
    await one.ask("C")
    assert await one.answered() == "An answer"
    assert await titles(one, 3) == ["C", "B", "A"]
    assert "keeps nothing" in await one.page.locator("#kept").inner_text()
    await one.page.click("[aria-label='Delete: A']")
    assert await titles(one, 2) == ["C", "B"]
    assert await one.page.evaluate(KEPT) == [["B", "An answer"]]


async def test_without_storage_of_any_kind_the_page_works(open_page):
    one = await open_page(make_app(FakeEngine(say("An answer"))))
    await one.context.add_init_script("""
      for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
        Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
      }
    """)
    one.told.clear()
    await one.page.reload()
    await one.ready()
    await one.page.click("#theme")
    await one.ask("A question")
    assert await one.answered() == "An answer"
