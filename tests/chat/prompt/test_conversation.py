"""Where later conversations may part from this one, and that a model whose state cannot be cut goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.engines import collect, config, settled
from support.fake_engine import INFO, ByteTokenizer
from support.templates import TEMPLATES

from llamafast.api.chat.schema import ChatRequest
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import plan_chat
from llamafast.chat.prompt.conversation import Conversation
from llamafast.config import ModelConfig
from llamafast.engine.load import load_engine

TOKENIZER = ByteTokenizer()
SYSTEM = {"role": "system", "content": "Be brief. " * 20}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shared_texts(template: str | None, *messages: dict[str, str], **fields: Any) -> list[str]:
    """The texts up to the checkpoints."""
    chat = ChatFormat(ModelConfig(), msgspec.structs.replace(INFO, chat_template=template), TOKENIZER)
    conversation = Conversation(ChatRequest(messages=list(messages), **fields).task(), chat)
    prompt = conversation.spliced(TOKENIZER)
    return [TOKENIZER.detokenize(prompt.tokens[:n]) for n in conversation.checkpoints(prompt, TOKENIZER)]


@pytest.mark.parametrize("text", ["hello", "</s>", "", "<s><user>"])
def test_the_system_prompt_and_the_turns_before_the_last_are_shared(text: str) -> None:
    system, begin = f"<s><system>{SYSTEM['content']}</s>", "<s>"
    assert shared_texts(INFO.chat_template, SYSTEM, user(text)) == [system]
    assert shared_texts(INFO.chat_template, user(text)) == [begin]
    before = f"{system}<user>{text}</s><assistant>ok</s>"
    assert shared_texts(INFO.chat_template, SYSTEM, user(text), assistant("ok"), user("x")) == [system, before]
    # a call and its result belong to the last user turn
    tail = [assistant("call"), {"role": "tool", "content": "result", "tool_call_id": "1"}]
    assert shared_texts(INFO.chat_template, SYSTEM, user(text), assistant("ok"), user("x"), *tail) == [system, before]


def test_other_conversations_share_what_the_checkpoints_say() -> None:
    """With every template here: rendering another last turn gives the same text up to there."""
    for name, template in TEMPLATES.items():
        ended = template.replace("</{{ m.role }}>", "{{ eos_token }}")
        turns = [SYSTEM, user("one"), assistant("two"), user("three")]
        shared = shared_texts(ended, *turns, tools=[TOOL])
        for other in ([SYSTEM, user("four")], [*turns[:3], user("five")]):
            chat = ChatFormat(ModelConfig(), msgspec.structs.replace(INFO, chat_template=ended), TOKENIZER)
            text = chat.control.unmark(Conversation(ChatRequest(messages=other, tools=[TOOL]).task(), chat).text)
            assert shared == [] or text.startswith(shared[0]), name
        assert shared == [] or text.startswith(shared[-1]), name


def test_a_template_that_refuses_the_shorter_conversation_gives_no_checkpoint() -> None:
    loop = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    strict = "{{ raise_exception('too short') if messages | length == 2 and 'Be brief' in messages[0].content }}" + loop
    turns = [SYSTEM, user("a"), assistant("b"), user("c")]
    texts = [f"{SYSTEM['content']}</s>", f"{SYSTEM['content']}</s>a</s>b</s>"]
    assert shared_texts(loop, *turns) == texts
    assert shared_texts(strict, *turns) == texts[1:]


@pytest.mark.parametrize("name", ["tiny-qwen35", "tiny-mamba", "tiny-gemma3-swa"])
async def test_another_conversation_goes_on_from_the_system_prompt(
    tiny_model: Callable[[str], Path], name: str
) -> None:
    path = tiny_model(name)
    options = {"n_ctx": 2048, "swa_full": False}
    engines = [load_engine(config(path, ram_bytes=ram, **options), path) for ram in (10**8, 0)]
    for engine in engines:
        engine.start()
    chat = ChatFormat(ModelConfig(chat_template=TEMPLATES["chatml"]), engine.info, engine.tokenizer)

    async def answer(*messages: dict[str, str]) -> tuple[int, tuple[int, ...]]:
        request = ChatRequest(messages=list(messages), max_tokens=8, temperature=0, ignore_eos=True).task()
        plan = plan_chat(request, chat, engine.tokenizer, engine.info).plan
        generations = [engine.submit(plan) for engine in engines]
        texts = await asyncio.gather(*map(collect, generations))
        assert texts[0] == texts[1]
        await settled(engines[0])
        return generations[0].cached_tokens, plan.checkpoints

    long = "tell me more about it " * 30
    cached, first = await answer(SYSTEM, user("a" + long))
    assert (cached, len(first)) == (0, 1)
    cached, second = await answer(SYSTEM, user("b" + long))
    assert cached == first[0] == second[0] > 50
    cached, third = await answer(SYSTEM, user("b" + long), assistant(long), user("c" + long))
    assert len(third) == 2
    cached, fourth = await answer(SYSTEM, user("b" + long), assistant(long), user("d" + long))
    assert cached == fourth[1] == third[1]
    for engine in engines:
        await engine.close()
