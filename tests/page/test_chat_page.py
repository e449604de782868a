"""The chat in a real browser, over an engine whose answers are scripted."""

from __future__ import annotations

import asyncio
import json
from array import array
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.fake_engine import INFO, FakeEngine, play, say
from support.hostile_answers import HOSTILE

from llamafast.api.client_wait import ClientWaits
from llamafast.api.keys import Keys
from llamafast.api.loading import Gate
from llamafast.config import ServerConfig
from llamafast.engine.types import Event

pytestmark = pytest.mark.page


def prompt(engine: FakeEngine, at: int = -1) -> str:
    return engine.tokenizer.detokenize(array("i", engine.generations[at].plan.prompts[0]))


async def test_words_are_there_before_the_answer_ends_and_so_is_its_price(open_page):
    rest = asyncio.Event()
    engine = FakeEngine(
        play([Event(0, "Some **words**", 3)], rest, [Event(0, " and more", 2)], [Event(0, "", 1, "stop")])
    )
    engine.cached_tokens = 10
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("Say something")
    await one.until("document.querySelector('.assistant > .text')?.innerText === 'Some words'")
    assert await one.page.locator("#stop").is_visible()
    assert await one.last(".text").locator("strong").inner_text() == "words"
    # while it runs
    await one.page.wait_for_selector(".cost [data-fact='tokens']")
    assert "3 tokens" in await one.last(".cost").inner_text()
    rest.set()
    assert await one.answered() == "Some words and more"
    cost = (await one.last(".cost").inner_text()).replace("\n", " ").replace("\u202f", " ")
    n_prompt = len(engine.plan.prompts[0])
    assert "2.0 ms to first token" in cost  # in the queue and after it
    assert "6 tokens" in cost
    assert "tok/s" in cost
    assert f"{n_prompt - 10} prompt computed" in cost
    assert "10 cached" in cost


async def test_a_bar_shows_how_much_of_the_prompt_is_computed(open_page):
    begun, rest = asyncio.Event(), asyncio.Event()
    engine = FakeEngine(play(begun, 20, rest, [Event(0, "x", 1)], [Event(0, "", 1, "stop")]))
    engine.cached_tokens = 5
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("x" * 60)
    await one.until("document.querySelector('.assistant .progress')?.innerText.startsWith('Waiting')")
    begun.set()
    bar = one.page.locator("[role=progressbar]")
    await bar.wait_for()
    assert await bar.get_attribute("aria-valuenow") == "20"
    assert await bar.get_attribute("aria-valuemax") == str(len(engine.plan.prompts[0]))
    assert "5 cached" in await one.last(".progress").inner_text()
    rest.set()
    await one.answered()
    assert not await one.last(".progress").is_visible()


@pytest.mark.parametrize("how", ["button", "Escape", "leave"])
async def test_stop_cancels_on_the_server(open_page, how):
    engine = FakeEngine(play([Event(0, "Some", 1)], asyncio.Event()))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("Say something")
    await one.until("document.querySelector('.assistant > .text')?.innerText === 'Some'")
    if how == "button":
        await one.page.click("#stop")
    elif how == "Escape":
        await one.page.keyboard.press("Escape")
    else:
        await one.page.reload()
    async with asyncio.timeout(30):
        while not engine.generations[0].cancelled:
            await asyncio.sleep(0.01)
    if how != "leave":
        assert await one.answered() == "Some"
        assert "you ended it" in await one.last(".cost").inner_text()


async def test_a_conversation_outlives_a_reload_and_nothing_of_it_is_on_the_server(open_page):
    engine = FakeEngine(say("An answer"))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("First question")
    await one.answered()
    await one.page.reload()
    await one.ready()
    assert await one.answered() == "An answer"
    assert await one.page.locator(".message.user > .text").inner_text() == "First question"
    assert await one.page.locator("#list .open").all_inner_texts() == ["First question"]
    await one.ask("Second question")
    await one.until("document.querySelectorAll('.message').length === 4")
    await one.answered()
    assert "<user>First question</s><assistant>An answer</s><user>Second question</s>" in prompt(engine)
    await one.page.click("#new")
    assert await one.page.locator(".welcome").is_visible()
    await one.page.click("#list .open")
    assert await one.answered() == "An answer"
    await one.page.click("#list .icon")
    await one.page.wait_for_selector(".welcome")
    assert await one.page.locator("#list li").count() == 0
    paths = {address.removeprefix(one.origin).partition("?")[0] for address in one.asked}
    assert {path for path in paths if not path.startswith("/page/")} == {"/", "/v1/models", "/v1/chat/completions"}


async def test_without_a_database_the_page_works_and_says_that_nothing_is_kept(open_page):
    one = await open_page(make_app(FakeEngine(say("An answer"))))
    await one.context.add_init_script(
        "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };"
    )
    await one.page.reload()
    await one.ready()
    await one.ask("A question")
    assert await one.answered() == "An answer"
    assert "keeps nothing" in await one.page.locator("#kept").inner_text()


async def test_edited_and_answered_again_the_branches_before_stay(open_page):
    engine = FakeEngine(say("first"))
    one = await (await open_page(make_app(engine))).ready()
    await one.ask("One")
    await one.answered()
    engine.script = say("second")
    await one.page.click("text=Answer again")
    await one.until("document.querySelector('.assistant:last-child > .text').innerText === 'second'")
    await one.answered()
    assert prompt(engine) == prompt(engine, 0)
    engine.script = say("third")
    await one.page.click(".message.user >> text=Edit")
    await one.page.fill(".edit textarea", "Another one")
    await one.page.click(".edit .primary")
    await one.until("document.querySelector('.assistant:last-child > .text').innerText === 'third'")
    await one.answered()
    assert "<user>Another one</s>" in prompt(engine)
    assert await one.page.locator(".message.user .turn").inner_text() == "\u20392 / 2\u203a"
    await one.page.click(".message.user [aria-label='The one before']")
    assert await one.answered() == "second"
    await one.page.click(".message.assistant [aria-label='The one before']")
    assert await one.answered() == "first"


async def test_settings_are_sent_and_kept(open_page):
    engine = FakeEngine(say('{"n": 1}'))
    one = await (await open_page(make_app(engine))).ready()
    await one.page.click("#open-settings")
    await one.page.fill("#set-system", "Be brief")
    await one.page.fill("#set-temperature", "0.25")
    await one.page.fill("#set-max_tokens", "17")
    await one.page.fill("#set-schema", "{ no json")
    await one.page.click("#settings .primary")
    assert "is no JSON" in await one.page.locator("#settings-wrong").inner_text()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    await one.page.fill("#set-schema", json.dumps(schema))
    await one.page.click("#settings .primary")
    await one.page.reload()
    await one.ready()
    assert await one.page.locator("#settings-said").inner_text() == "Settings (4)"
    await one.ask("A number")
    await one.answered()
    plan = engine.plan
    assert (plan.sampling.temperature, plan.max_tokens) == (0.25, 17)
    assert plan.matcher is not None
    assert "<system>Be brief</s>" in prompt(engine)
    await one.page.click("#open-settings")
    await one.page.click("#settings >> text=Reset")
    await one.page.click("#settings >> text=Cancel")
    await one.ask("Another")
    await one.until("document.querySelectorAll('.message').length === 4")
    await one.answered()
    assert engine.generations[-1].plan.matcher is None


async def test_reasoning_is_folded_and_calls_are_shown_and_answered(open_page):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    engine = FakeEngine(say("<think>", "I could ask.", "</think>", call), info=replace(INFO, max_seq_len=4096))
    template = INFO.chat_template + "{# <think></think><tool_call></tool_call> #}"
    app = make_app(engine, model={"dialect": "hermes", "chat_template": template})
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    one = await (await open_page(app)).ready()
    await one.page.click("#open-settings")
    await one.page.fill("#set-tools", json.dumps(tools))
    await one.page.click("#settings .primary")
    await one.ask("What weather?")
    await one.answered()
    folded = one.last("details.thoughts")
    assert await folded.get_attribute("open") is None
    await folded.locator("summary").click()
    assert "I could ask." in await folded.inner_text()
    assert json.loads(await one.last(".calls").locator("pre").inner_text()) == {"city": "Bern"}
    assert "a call ended it" in await one.last(".cost").inner_text()
    engine.script = say("It is sunny.")
    await one.page.fill("[aria-label='Result of weather']", "sunny")
    await one.page.click("text=Give it")
    await one.until("document.querySelectorAll('.assistant').length === 2")
    assert await one.answered() == "It is sunny."
    assert "sunny" in prompt(engine)


async def test_pictures_are_attached_where_the_model_takes_them(open_page, tmp_path):
    picture = tmp_path / "dot.png"
    from PIL import Image

    Image.new("RGB", (4, 4), "red").save(picture)
    sent: list[Any] = []
    for modalities in ((), ("image",)):
        one = await (
            await open_page(make_app(FakeEngine(say("A dot"), info=replace(INFO, modalities=modalities))))
        ).ready()
        assert await one.page.locator("#attach").is_visible() == bool(modalities)
        if not modalities:
            continue
        one.may_fail.append("400")
        one.page.on("request", lambda request: sent.append(request.post_data) if request.post_data else None)
        await one.page.set_input_files("#file", picture)
        await one.page.wait_for_selector("#attached img")
        await one.ask("What is it?")
        await one.page.wait_for_selector("#stop", state="hidden")
        (part, words) = json.loads(sent[0])["messages"][0]["content"]
        assert part["image_url"]["url"].startswith("data:image/png;base64,")
        assert words == {"type": "text", "text": "What is it?"}
        assert await one.page.locator(".message.user img").count() == 1


@pytest.mark.parametrize(("kind", "name"), [("audio", "word.wav"), ("video", "clip.webm")])
async def test_sound_and_video_are_shown_as_what_they_are(open_page, tmp_path, kind, name):
    file = tmp_path / name
    file.write_bytes(b"sound or pictures")
    app = make_app(FakeEngine(say("Heard"), info=replace(INFO, modalities=("image", kind))))
    one = await (await open_page(app)).ready()
    one.may_fail.append("400")
    sent: list[Any] = []
    one.page.on("request", lambda request: sent.append(request.post_data) if request.post_data else None)
    assert await one.page.locator("#file").get_attribute("accept") == f"image/*,{kind}/*"
    await one.page.set_input_files("#file", file)
    await one.page.wait_for_selector(f"#attached {kind}")
    await one.ask("What is it?")
    await one.page.wait_for_selector("#stop", state="hidden")
    (part, _) = json.loads(sent[0])["messages"][0]["content"]
    assert part["type"] == f"{kind}_url"
    assert part[part["type"]]["url"].startswith(f"data:{kind}/")
    assert await one.page.locator(f".message.user {kind}").get_attribute("aria-label") == name


async def test_what_cannot_be_attached_is_told(open_page, tmp_path):
    file = tmp_path / "dot.png"
    file.write_bytes(b"picture")
    clip = tmp_path / "clip.webm"
    clip.write_bytes(b"picture")
    app = make_app(FakeEngine(say("A dot"), info=replace(INFO, modalities=("image",))))
    one = await (await open_page(app)).ready()
    one.may_fail.append("400")
    fault = one.page.locator("#attached [role=alert]")
    await one.page.set_input_files("#file", [file, clip])
    await fault.wait_for()
    assert await fault.inner_text() == "This model takes no video files"
    assert await one.page.locator("#attached img").count() == 1
    await one.page.evaluate(
        "FileReader.prototype.readAsDataURL = function () { this.dispatchEvent(new Event('error')); }; 0"
    )
    await one.page.set_input_files("#file", file)
    await one.until("document.querySelector('#attached [role=alert]').innerText === 'dot.png cannot be read'")
    assert await one.page.locator("#attached img").count() == 1
    await one.page.click("#attached .chip .icon")
    assert await one.page.locator("#attached").inner_text() == ""


async def test_a_list_of_models_that_is_none_is_told_and_asked_for_again(open_page):
    one = await open_page(make_app(FakeEngine(say("Hello"))))
    await one.context.route("**/v1/models", lambda route: route.fulfill(body="<html>"))
    await one.page.reload()
    await one.until("document.querySelector('#model').innerText.includes('JSON')")
    await one.context.unroute("**/v1/models")
    await one.ready()
    await one.ask("Hi")
    assert await one.answered() == "Hello"


async def test_a_wrong_key_is_told_and_the_right_one_is_kept_for_the_tab(open_page, tmp_path):
    file = tmp_path / "keys"
    file.write_text("right-key\n")
    file.chmod(0o600)
    one = await open_page(make_app(FakeEngine(say("Hello")), keys=Keys(file)))
    one.may_fail.append("401")
    await one.page.wait_for_selector("#key-dialog[open]")
    assert "no API key" in await one.page.locator("#key-said").inner_text()
    await one.page.fill("#key-text", "wrong-key")
    await one.page.press("#key-text", "Enter")
    await one.until("document.querySelector('#key-said').innerText.includes('incorrect')")
    await one.page.fill("#key-text", "right-key")
    await one.page.press("#key-text", "Enter")
    await one.ready()
    await one.ask("Hi")
    assert await one.answered() == "Hello"
    await one.page.reload()
    await one.ready()
    stored = await one.page.evaluate("JSON.stringify([localStorage, document.cookie])")
    assert "right-key" not in stored
    other = await one.context.new_page()
    await other.goto(one.origin)
    await other.wait_for_selector("#key-dialog[open]")
    await other.close()


async def test_no_answer_runs_a_script_asks_elsewhere_or_breaks_the_policy(open_page):
    engine = FakeEngine(info=replace(INFO, max_seq_len=16384))
    one = await (await open_page(make_app(engine))).ready()
    for i, hostile in enumerate(HOSTILE):
        half = len(hostile) // 2
        # it is drawn as it comes, cut in the middle too
        engine.script = say(hostile[:half], hostile[half:], "\n\nend")
        if i % 10 == 0:
            await one.page.click("#new")
        await one.ask(hostile)
        await one.until(f"document.querySelectorAll('.message').length === {2 * (i % 10) + 2}")
        assert await one.answered(), hostile
        assert not await one.last(".wrong").is_visible(), hostile
        if i % 10 == 9:
            assert await one.page.evaluate(_UNWANTED) == [], hostile
    assert len(HOSTILE) >= 100
    assert await one.page.locator("#send").is_visible()


# Elements and attributes in answers that are none of what Markdown makes.
_UNWANTED = """
const KNOWN = new Set(("A B BLOCKQUOTE BR CODE DD DEL DETAILS DL DT EM H1 H2 H3 H4 H5 H6 HR I IMG KBD LI OL P PRE " +
  "Q S SMALL STRONG SUB SUMMARY SUP TABLE TBODY TD TH THEAD TR U UL").split(" "));
[...document.querySelectorAll(".assistant > .text *")].flatMap((e) => [
  ...(KNOWN.has(e.nodeName) || e.matches(".code, .copy") ? [] : [e.outerHTML]),
  ...[...e.attributes].filter(({ name, value }) => /^(on|style|id|name|role|data-|srcset|ping)/.test(name) ||
    (name === "is" && value) || (name === "href" && !/^(https?:|mailto:)/.test(value)) ||
    (name === "src" && !/^data:image.(png|jpeg|gif|webp);/.test(value)))
    .map(({ name, value }) => `${name}=${value}`),
])
"""


async def test_while_the_model_loads_the_page_waits_for_it(open_page):
    config = ServerConfig()
    waits = ClientWaits(config)
    gate = Gate(waits, config)
    one = await open_page(gate)
    one.may_fail.append("503")
    await one.until("document.querySelector('#model').innerText.includes('loading')")
    gate.open(make_app(FakeEngine(say("Hello")), waits=waits))
    await one.ready()
    await one.ask("Hi")
    assert await one.answered() == "Hello"
