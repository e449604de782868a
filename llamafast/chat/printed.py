"""The net under ``chat.accepts``: a prompt in which something is missing that the client sent is refused.

Of each text a few words are looked for, which no template writes in another way: most escape, trim or parse what they
print, and some leave out what their models are not to read again (the thoughts in an answer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llamafast.chat.dialects.tables import DIALECTS, GENERIC
from llamafast.chat.messages import TEXT_FIELDS
from llamafast.chat.tools import Tool
from llamafast.errors import InvalidRequest

_LONGEST = 32
_LOOKED_AT = 512
_PIECE = 1 << 20
# Most texts begin as they are, not far behind the one before.
_BEGIN, _NEAR = 64, 1 << 14
# Texts that are not where the order of the messages has them cost a look at the whole prompt.
_MAX_DISPLACED = 64

_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")
_ANY = re.compile(r"\S+")
# What turns thinking on and off in a text is for the template, not for the model.
_SWITCHES = re.compile(r"/(?:no_)?think\b")
_THOUGHT_ENDS = re.compile("|".join({re.escape(end) for d in (*DIALECTS, GENERIC) for _, end in d.reasoning}))


def check_printed(
    prompt: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Iterable[Tool],
    documents: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Raises InvalidRequest that names what of ``messages``, ``tools`` or ``documents`` is not in ``prompt``."""
    names = _Search(prompt)
    for tool in tools:
        if not names.finds(tool.name):
            raise InvalidRequest(f"the chat template does not print the tool {tool.name!r}", param="tools")
    given = _Search(prompt)
    for i, document in enumerate(documents or ()):
        if not all(given.finds_words_of(text) for text in document.values() if isinstance(text, str)):
            raise InvalidRequest(f"the chat template does not print `documents[{i}]`", param="documents")
    texts = _Search(prompt)
    for i, message in enumerate(messages):
        for field, text in _texts(message):
            if not texts.finds_words_of(text):
                shown = f"{message['role']} message with {text[:_LONGEST]!r}"
                raise InvalidRequest(f"the chat template does not print the {shown}", param=f"messages[{i}].{field}")


def _texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    content = message.get("content")
    own = [content] if isinstance(content, str) else [part[TEXT_FIELDS[part["type"]]] for part in content or ()]
    for text in own:
        if message["role"] == "assistant":
            text = _THOUGHT_ENDS.split(text)[-1]
        yield "content", text
    for call in message.get("tool_calls") or ():
        custom = call.get("custom")
        yield "tool_calls", (custom if isinstance(custom, dict) else call["function"])["name"]


class _Search:
    """Looks for texts in the order in which a prompt mostly has them; in all, it reads the prompt a few times."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._at = 0
        self._displaced = 0

    def finds_words_of(self, text: str) -> bool:
        begin = text[:_BEGIN].strip()
        if begin and (found := self._prompt.find(begin, self._at, self._at + _NEAR)) >= 0:
            self._at = found
            return True
        text = _SWITCHES.sub("", text) if "think" in text else text
        runs = _WORDS.findall(text, 0, _LOOKED_AT) or _WORDS.findall(text)
        if runs:
            return self.finds(max(runs, key=len)[:_LONGEST])
        run = max(_ANY.findall(text, 0, _LOOKED_AT), key=len, default="")[:_LONGEST]
        return not run or self.finds(run) or self.finds(json.dumps(run)[1:-1])

    def finds(self, words: str) -> bool:
        found = self._find(words, self._at, len(self._prompt))
        if found >= 0:
            self._at = found
            return True
        self._displaced += 1
        return self._displaced > _MAX_DISPLACED or self._find(words, 0, self._at) >= 0

    def _find(self, words: str, begin: int, end: int) -> int:
        """In pieces, between which another thread may run."""
        for start in range(begin, end, _PIECE):
            found = self._prompt.find(words, start, start + _PIECE + len(words))
            if found >= 0:
                return found
        return -1
