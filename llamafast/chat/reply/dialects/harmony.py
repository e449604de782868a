"""Harmony: a reply is a row of messages, each with a header that names its channel and perhaps a recipient."""

from __future__ import annotations

import re

from llamafast.chat.reply.dialects.said import Said
from llamafast.chat.reply.dialects.source import BLANK, Marks, Source, Step
from llamafast.chat.reply.dialects.values import read_value

_BEGINS = Marks(("<|start|>", "<|channel|>"))
_HEADER_ENDS = Marks(("<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"))
_ENDS = Marks(("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"))
_RECIPIENT = re.compile(r"\bto=([\w.:/-]+)")


def read_messages(source: Source, said: Said, *, calls: bool, split_reasoning: bool) -> Step[None]:
    """``<|start|>`` role ``<|channel|>`` channel ``<|message|>`` text ``<|end|>``, again and again.

    Either half of a header may name the recipient. Without ``calls`` messages to one are content, and so is the
    analysis where ``split_reasoning`` is not wanted.
    """
    mark = yield from source.until(_BEGINS, said.content.feed)
    while mark:
        pieces = [mark] if mark == "<|channel|>" else []
        mark = yield from source.until(_HEADER_ENDS, pieces.append)
        header = "".join(pieces)
        if mark == "<|message|>":
            recipient = _RECIPIENT.search(header)
            if recipient and calls:
                mark = yield from _read_call(source, said, recipient[1].removeprefix("functions."))
            else:
                analysis = split_reasoning and "<|channel|>analysis" in header
                prose = said.reasoning if analysis else said.content
                prose.begin_part()
                mark = yield from source.until(_ENDS, prose.feed)
        elif "<|" not in header:  # text of a model that forgot its header
            said.content.feed(header.removeprefix("assistant"))
        if mark not in ("<|start|>", "<|channel|>", ""):
            mark = yield from source.until(_BEGINS, said.content.feed)
    said.content.flush()


def _read_call(source: Source, said: Said, name: str) -> Step[str]:
    """A message to a function: its text is the arguments, JSON or not. Returns the mark that ended it."""
    said.begin(name)
    yield from source.run(BLANK)
    if (yield from source.peek()) == "{" and (yield from read_value(source, said.arguments)):
        said.end()
        return (yield from source.until(_ENDS, lambda _: None))
    mark = yield from source.until(_ENDS, said.arguments)
    if mark:
        said.end()
    return mark
