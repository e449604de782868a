"""The net under ``chat.prompt.accepts``: a prompt in which something is missing that the client sent is refused.

Of each text a few words are looked for, which no template writes in another way: most escape, trim or parse what they
print, and some leave out what their models are not to read again (the thoughts in an answer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llamafast.chat.prompt.control import ControlTokens
from llamafast.chat.prompt.messages import TEXT_FIELDS
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.chat.request import ChatTask
from llamafast.errors import InvalidRequest

_LONGEST = 32
# Of a text without words in its beginning a little more is read, of none the whole: one may have 20 million letters.
_LOOKED_AT, _AT_MOST = 512, 1 << 13
_PIECE = 1 << 20
# Most texts begin as they are, not far behind the one before.
_BEGIN, _NEAR = 64, 1 << 14
# Texts that are not where the order of the messages has them cost a look at the whole prompt: so many looks, and more
# where it is short.
_MAX_LOOKS, _MIN_READ = 64, 1 << 24

_WORDS = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)*")
_NUMBERS = re.compile(r"\w+")
_ANY = re.compile(r"\S+")
# What turns thinking or the template's own instructions on and off in a text is for the template, not for the model.
_SWITCHES = re.compile(r"/(?:(?:no_)?think|system_override)\b")
_LONGEST_SWITCH = 16
_THOUGHT_ENDS = sorted({end for d in (*DIALECTS, GENERIC) for _, end in d.reasoning})


def check_printed(prompt: str, task: ChatTask, control: ControlTokens) -> None:
    """Raises InvalidRequest that names what of the messages, tools or documents of ``task`` is not in ``prompt``."""
    names = _Search(prompt)
    for tool in task.tools.shown:
        if not names.finds(tool.name):
            raise InvalidRequest(f"the chat template does not print the tool {tool.name!r}", param=task.named("tools"))
    given = _Search(prompt)
    for i, document in enumerate(task.documents or ()):
        if not all(given.finds_words_of(text) for text in document.values() if isinstance(text, str)):
            raise InvalidRequest(f"the chat template does not print `documents[{i}]`", param="documents")
    texts = _Search(prompt)
    for i, message in enumerate(task.messages):
        for field, text in _texts(message):
            if not texts.finds_words_of(text):
                shown = f"{message['role']} message with {control.without_words(text)[:_LONGEST]!r}"
                param = task.named(f"messages[{i}].{field}")
                raise InvalidRequest(f"the chat template does not print the {shown}", param=param)


def _texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    content = message.get("content")
    own = [content] if isinstance(content, str) else [part[TEXT_FIELDS[part["type"]]] for part in content or ()]
    for text in own:
        if message["role"] == "assistant":
            text = text[_answer_begins(text) :]
        yield "content", text
    for call in message.get("tool_calls") or ():
        custom = call.get("custom")
        yield "tool_calls", (custom if isinstance(custom, dict) else call["function"])["name"]


def _answer_begins(text: str) -> int:
    """Where the last thought ends; looked for in pieces, between which another thread may run."""
    for start in range((len(text) - 1) // _PIECE * _PIECE, -1, -_PIECE):
        ends = (text.rfind(end, start, start + _PIECE + len(end) - 1) + len(end) for end in _THOUGHT_ENDS)
        places = [at for at, end in zip(ends, _THOUGHT_ENDS, strict=True) if at >= len(end)]
        if places:
            return max(places)
    return 0


def _looked_at(text: str, most: int) -> str:
    """Up to ``most`` letters of ``text``, white space in front and what is not the template's to print left out."""
    for start in range(0, len(text), _AT_MOST):
        if not text[start : start + _AT_MOST].isspace():
            break
    else:
        return ""
    start += len(piece := text[start : start + _AT_MOST]) - len(piece.lstrip())
    piece = text[start : start + most]
    if start + most < len(text) and (cut := piece.rfind("/", max(1, most - _LONGEST_SWITCH))) > 0:
        piece = piece[:cut]
    return ControlTokens.unmark(_SWITCHES.sub("", piece))


class _Search:
    """Looks for texts in the order in which a prompt mostly has them; in all, it reads the prompt so many times."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._at = 0
        self._left = max(_MAX_LOOKS * len(prompt), _MIN_READ)

    def finds_words_of(self, text: str) -> bool:
        begin = text[:_BEGIN].strip()
        if begin and (found := self._find(begin, self._at, self._at + _NEAR)) >= 0:
            self._at = found
            return True
        beginning = _looked_at(text, _LOOKED_AT)
        runs = _WORDS.findall(beginning) or _WORDS.findall(_looked_at(text, _AT_MOST)) or _NUMBERS.findall(beginning)
        if not runs and not (runs := _ANY.findall(beginning)):
            return True
        words = max(runs, key=len)[:_LONGEST]
        written = (words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1])
        return self.finds(*dict.fromkeys(written))

    def finds(self, *spellings: str) -> bool:
        """Whether one of ``spellings`` is in the prompt; also where too much of it was read to go on."""
        end = len(self._prompt)
        near = min(self._at + _NEAR, end)
        for begin, stop in ((self._at, near), (near, end), (0, self._at)):
            for words in spellings:
                if (found := self._find(words, begin, stop)) >= 0:
                    self._at = max(self._at, found)
                    return True
        return self._left < 0

    def _find(self, words: str, begin: int, end: int) -> int:
        """Where ``words`` begin, from ``begin`` to ``end``; in pieces, between which another thread may run."""
        end = min(end, len(self._prompt))
        for start in range(begin, end, _PIECE):
            if self._left < 0:
                break
            stop = min(start + _PIECE, end)
            found = self._prompt.find(words, start, stop + len(words) - 1)
            self._left -= (found if found >= 0 else stop) - start
            if found >= 0:
                return found
        return -1
