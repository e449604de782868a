"""From the text of a reply to its Deltas, as a dialect's tables say."""

from __future__ import annotations

from collections.abc import Sequence

from llamafast.chat.reply.deltas import Delta
from llamafast.chat.reply.dialects.calls import SEPARATORS, CallReader, Outcome
from llamafast.chat.reply.dialects.forms import CallForm, Dialect
from llamafast.chat.reply.dialects.harmony import read_messages
from llamafast.chat.reply.dialects.said import Said
from llamafast.chat.reply.dialects.source import BLANK, Source, Step, marks_of
from llamafast.chat.tools import Tool


class DialectParser:
    """A ``ReplyParser``: text that turns out not to be a call is content.

    Without ``tools`` nothing is a call. ``begun`` is the part of the reply that the prompt ends with, such as the mark
    that opens reasoning: it is read, and says nothing.
    """

    def __init__(
        self, dialect: Dialect, tools: Sequence[Tool], *, split_reasoning: bool = True, begun: str = ""
    ) -> None:
        self._dialect = dialect
        self._forms = dialect.forms if tools else ()
        self._spans = dict(dialect.reasoning) if split_reasoning else {}
        self._openers = tuple(opener for form in self._forms for opener in form.openers)
        self._marks = marks_of((*self._spans, *self._openers, *dialect.dropped))
        self._bare = next((form for form in self._forms if not form.opening), None)
        self._source = Source()
        self._said = Said()
        self._calls = CallReader(self._source, self._said, {tool.name: tool for tool in tools})
        if dialect.channels:
            self._steps = read_messages(self._source, self._said, calls=bool(tools), split_reasoning=split_reasoning)
        else:
            self._steps = self._read_reply()
        self.feed(begun)

    def feed(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._source.add(text)
        next(self._steps, None)
        return self._said.take()

    def finish(self) -> list[Delta]:
        self._source.ended = True
        next(self._steps, None)
        return self._said.take()

    def _read_reply(self) -> Step[None]:
        content = self._said.content
        mark = ""
        while True:
            if mark in self._openers:
                yield from self._read_calls(mark)
            elif self._bare is not None and not self._said.n_calls and not content.spoken:
                yield from self._read_bare_calls(self._bare)
            mark = yield from self._source.until(self._marks, content.feed)
            if mark in self._spans:
                mark = yield from self._read_reasoning(self._spans[mark])
            elif not mark:
                break
        content.flush()

    def _read_reasoning(self, end: str) -> Step[str]:
        """Reasoning up to ``end``, or to the mark of a call where that ends it too: that mark is returned."""
        self._said.reasoning.begin_part()
        ends = (end, *self._openers) if self._dialect.calls_end_reasoning else (end,)
        mark = yield from self._source.until(marks_of(ends), self._said.reasoning.feed)
        self._said.content.begin_part()
        return mark if mark in self._openers else ""

    def _read_bare_calls(self, form: CallForm) -> Step[None]:
        """Calls that nothing announces stand at the beginning of an answer."""
        self._source.keep()
        yield from self._source.run(BLANK)
        if (yield from self._source.peek()) == "{":
            yield from self._read_section(form, "", ())
        else:
            self._said.content.feed(self._source.kept())

    def _read_calls(self, opener: str) -> Step[None]:
        """The calls that ``opener`` announces, or content where none follow."""
        self._source.keep()
        forms = [form for form in self._forms if opener in form.openers]
        if len(forms) > 1:  # two forms begin alike: an object tells itself from a name
            yield from self._source.run(BLANK)
            is_object = (yield from self._source.peek()) in ("{", "[")
            forms = [form for form in forms if (form.shape == "object") == is_object] or forms
        expected = () if opener in forms[0].loose else forms[0].opening[1:]
        yield from self._read_section(forms[0], opener, expected)

    def _read_section(self, form: CallForm, opener: str, expected: tuple[str, ...]) -> Step[None]:
        """Calls in a row. ``opener`` was read, ``expected`` stands between it and the first call."""
        source, end = self._source, form.end.split()
        declared = opener in ("", *form.loose)
        while True:
            outcome = Outcome.NO_CALL
            if (yield from source.expect(expected)):
                if form.listed:
                    yield from source.skip("[")
                outcome = yield from self._calls.read(form, declared=declared)
            if outcome is Outcome.NO_CALL:
                self._said.content.feed(opener + source.kept())
                return
            self._said.content.begin_part()
            if outcome is Outcome.BROKEN:
                ends = (*form.after.split(), *end, *form.openers)
                yield from source.until(marks_of(ends), self._said.arguments)
                return
            if form.opening and not form.begin:
                return
            yield from source.run(SEPARATORS)
            if form.listed and (yield from source.expect("]")):
                yield from source.skip(end)
                return
            if end and (yield from source.expect(end)):
                return
            source.keep()
            opener, expected = "", tuple(form.before.split())
