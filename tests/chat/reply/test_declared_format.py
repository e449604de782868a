"""What the config declares about replies reaches their parser."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.fake_engine import INFO, ByteTokenizer

from llamafast.chat.format import ChatFormat
from llamafast.chat.reply.deltas import assemble
from llamafast.config import ModelConfig
from llamafast.errors import ConfigError

TEMPLATE = {"start_anchor": "<|im_start|>", "fields": {"thinking": {"open": "<a>", "close": "</s>"}, "content": {}}}
SCHEMA = {"type": "object", "properties": {"content": {"type": "string", "x-regex": r"<s>\|x(.*?)(?=<\|b\|>|$)"}}}


@pytest.mark.parametrize(
    ("declared", "text", "message"),
    [
        ({"response_template": TEMPLATE}, "<a>b</s>c", ("c", "b")),
        ({"response_schema": SCHEMA}, "<s>|xc<|b|>", ("c", "")),
    ],
)
def test_replies_are_read_as_declared(declared: dict, text: str, message: tuple[str, str]) -> None:
    info = replace(INFO, chat_template="<tool_call>", control_tokens=("<s>", "</s>", "<|b|>"))
    parser = ChatFormat(ModelConfig(**declared), info, ByteTokenizer()).parser("", (), split_reasoning=True)()
    assert assemble(parser.feed(text) + parser.finish())[:2] == message


def test_a_declaration_that_cannot_be_used_stops_the_start() -> None:
    for declared in ({"response_template": {}}, {"response_schema": {"x-regex": "("}}):
        with pytest.raises(ConfigError, match=next(iter(declared))):
            ChatFormat(ModelConfig(**declared), INFO, ByteTokenizer())
