"""Control tokens in what a client wrote: exactly the tokens of the plain text, and never those of the template."""

from __future__ import annotations

import re
from array import array
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import BOS, EOS, ByteTokenizer

from llamafast.chat.prompt import control
from llamafast.chat.prompt.control import MARKS, ControlTokens
from llamafast.chat.prompt.template import ChatTemplate
from llamafast.errors import InvalidRequest

TOKENIZER = ByteTokenizer()
CONTROL = ControlTokens(["<s>", "</s>", ""])
SOURCE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>"
TEMPLATE = ChatTemplate(SOURCE, "<s>", "</s>", CONTROL)


def tokens_of(*texts: str) -> list[int]:
    text = TEMPLATE.render([{"role": "user", "content": text} for text in texts])
    return list(CONTROL.tokenize(text, TOKENIZER))


@given(st.lists(st.lists(st.sampled_from(["<s>", "</s>", "<", "s", ">", "é", "\n", *MARKS]), max_size=8), max_size=4))
def test_the_clients_text_is_plain_text(pieces: list[list[str]]) -> None:
    texts = ["".join(piece) for piece in pieces]
    expected: list[int] = []
    for text in texts:
        expected += [BOS, *f"user: {text}".encode(), EOS]
    found = tokens_of(*texts)
    if not any(mark in text for text in texts for mark in MARKS):
        assert found == [*expected, BOS]
    # whatever the client writes, the control tokens are the template's
    assert [token for token in found if token >= BOS] == [BOS, EOS] * len(texts) + [BOS]


def test_text_without_control_tokens_is_tokenised_in_one_piece() -> None:
    class Counting(ByteTokenizer):
        calls = 0

        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
            self.calls += 1
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    tokenizer = Counting()
    text = TEMPLATE.render([{"role": "user", "content": "plain"}])
    assert CONTROL.tokenize(text, tokenizer) == tokenizer.tokenize(text, add_special=False, parse_special=True)
    assert tokenizer.calls == 2


def test_runs_end_at_the_templates_own_control_tokens() -> None:
    text = TEMPLATE.render([{"role": "user", "content": content} for content in ("a", "b<s>c", "d")])
    runs = [(CONTROL.unmark(run), is_marked) for run, is_marked in CONTROL._runs(text)]
    assert runs == [("<s>user: a</s><s>", False), ("user: b<s>c", True), ("</s><s>user: d</s><s>", False)]


@pytest.mark.parametrize("ensure_ascii", ["true", "false"])
def test_json_in_a_template_keeps_the_marks(ensure_ascii: str) -> None:
    template = ChatTemplate(f"<s>{{{{ tools | tojson(ensure_ascii={ensure_ascii}) }}}}</s>", "", "", CONTROL)
    text = template.render([], tools=[{"</s>": ["é</s>\u007f\U0001f600"]}])
    tokens = list(CONTROL.tokenize(text, TOKENIZER))
    assert (tokens.count(BOS), tokens.count(EOS)) == (1, 1)
    shown = r"\u00e9</s>" + "\x7f" + r"\ud83d\ude00" if ensure_ascii == "true" else "é</s>\x7f\U0001f600"
    assert CONTROL.unmark(text) == f'<s>[{{"</s>": ["{shown}"]}}]</s>'


def test_every_string_of_the_client_is_marked() -> None:
    value = {"<s>": ["</s>", {"a": "x<s>y"}, 5, None, True]}
    open_, close = MARKS
    marked = CONTROL.mark(value)
    assert marked == {f"{open_}<s>{close}": [f"{open_}</s>{close}", {"a": f"x{open_}<s>{close}y"}, 5, None, True]}
    assert value == {"<s>": ["</s>", {"a": "x<s>y"}, 5, None, True]}


def test_the_longest_of_overlapping_tokens_is_the_one() -> None:
    open_, close = MARKS
    assert ControlTokens(["<a", "<a>", "<a>>"]).mark("<a>>") == f"{open_}<a>>{close}"


TOKENS = st.lists(st.text("<a|>", min_size=1, max_size=5), min_size=1, max_size=8)


@given(TOKENS, st.text("<a|>", max_size=60))
def test_long_texts_are_marked_as_in_one_piece(tokens: list[str], text: str) -> None:
    by_length = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    open_, close = MARKS
    whole = by_length.sub(lambda found: f"{open_}{found[0]}{close}", text)
    with pytest.MonkeyPatch.context() as patch:
        for piece in (4, 7, 1 << 16):
            patch.setattr(control, "_PIECE", piece)
            assert ControlTokens(tokens).mark(text) == whole
            assert ControlTokens.unmark(whole) == text


class Sliced(str):
    """A text that is too long to be read in one go: while C code does, no other thread runs."""

    longest = 0

    def __getitem__(self, part: Any) -> str:
        piece = super().__getitem__(part)
        Sliced.longest = max(Sliced.longest, len(piece))
        return piece

    def replace(self, *_: Any) -> str:
        raise AssertionError


def test_long_texts_are_read_in_pieces() -> None:
    text = "<s>" * 100_000
    read: list[int] = []

    class Reading:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self.match = pattern.match
            self._pattern = pattern

        def sub(self, change: Any, text: str) -> str:
            read.append(len(text))
            return self._pattern.sub(change, text)

    tokens = ControlTokens(["<s>", "</s>"])
    tokens._token = Reading(tokens._token)  # type: ignore[assignment]
    marked = tokens.mark(text)
    assert (max(read) <= 1 << 16, sum(read)) == (True, len(text))
    assert ControlTokens.unmark(Sliced(marked)) == text
    assert 0 < Sliced.longest <= 1 << 16


def test_hundreds_of_control_tokens_cost_no_more_than_a_few() -> None:
    """Where the texts begin alike, a place is not compared with each of them."""
    text = "not <|reserved_, " * 5_000
    few, many = (ControlTokens(["<s>", *(f"<|reserved_{i}|>" for i in range(n))]) for n in (4, 2000))
    start = thread_time()
    few.mark(text)
    between = thread_time()
    many.mark(text)
    assert thread_time() - between < 20 * (between - start) + 0.05


def test_values_nested_too_deeply_are_a_bad_request() -> None:
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        CONTROL.mark(value)
    while value:  # or their end is as deep a recursion
        value = value.pop()
