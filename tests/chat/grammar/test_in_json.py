"""Quoted grammars take just the quoted texts of the grammars they are made of."""

from __future__ import annotations

import json
from itertools import product

import pytest

from llamafast.chat.grammar.compiler import acceptor
from llamafast.chat.grammar.in_json import MAX_SETS, quoted
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Every kind of character to JSON: plain, escaped, short and long, more than a byte.
ALPHABET = 'aB"\\\n\t\x01/] é'
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: add_hunk | update_hunk // no others here
add_hunk: "*** Add File: " filename LF add_line+
update_hunk: "*** Update File: " filename LF change?
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF
%import common.LF
"""


def in_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize(
    "grammar",
    [
        r"start: /.*/ LF" "\n%import common.LF",
        r"start: /[^\"]+/",
        r'start: /["\\]/ /\s+/',
        r"start: /a\/B\"?/ | /\W{2,3}/",
        r"start: /(?:a|B\\)+\n?/",
        r"start: /\x22\x{5c}\u0001/ | /[^\]\[a]{2}/ | /[]\n]/",
        r"start: /(?P<n>.)(\n|a)*?/",
        r"start: /\p{L}+/ /\t/",
        r"start: /^a[[:alpha:]&&[^a]]\n$/",
        r"start: /a.B/s | /é\n./",
        r"start: /b\n/i",
        r'start: "a\n"i+ | "\\\t" | "\x22\u0001" | ""',
        'start: _TAB "a" TAB\n_TAB: "\\t"\nTAB: "\\n"',
        r'start: ("\t".."\"")~1..2',
        'start: LINE+\nLINE: TEXT? NL\nTEXT: /[a\\t]+/\nNL: "\\n"',
        'start: [word] _TAB\nword: "a"+\n_TAB: "\\t"',
        "start: CNAME WS\n%import common.CNAME\n%import common.WS -> WS",
        "start: ESCAPED_STRING\n%import common.ESCAPED_STRING",
        'start: "a"+ # any number\n%ignore " "',
    ],
)
def test_short_texts(grammar: str) -> None:
    within, outside = acceptor({"lark_grammar": quoted(grammar)}), acceptor({"lark_grammar": grammar})
    taken = 0
    for n in range(4):
        for chars in product(ALPHABET, repeat=n):
            text = "".join(chars)
            allowed = outside(text)
            assert within(in_string(text)) == allowed, text
            taken += allowed
    assert taken


def test_a_patch() -> None:
    added = '*** Add File: a "b"\\c.py\n+print("é\t\\n")\n+\n'
    text = f'*** Begin Patch\n{added}*** Update File: x\n@@ def\n-a\n+"b"\n*** End Patch'
    within = acceptor({"lark_grammar": quoted(PATCH)})
    assert acceptor({"lark_grammar": PATCH})(text)
    assert within(in_string(text))
    for wrong in (
        text,
        in_string(text.replace("+", "*")),
        in_string(text) + "\\t",
        in_string(text).replace("\\n", "\\u000a"),
    ):
        assert not within(wrong)


def test_what_needs_no_quoting_stays() -> None:
    grammar = 'start: "a" /[b-d]+/ -> x\n%ignore " "'
    assert quoted(grammar) == grammar


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a" ~B\nB: "b"',
        "start: /a\\n/ & /.b/s",
        'start: "\\n"\n%ignore " "',
        "start: WS\n%import common.WS\n%ignore WS",
        'start: /a\\b"/',
        "start: /(?i)a\\n/",
        "start: / a \\n/x",
        'start: "\\n" %json {}',
        'start: "\\n" <eos>',
    ],
)
def test_what_cannot_be_quoted(grammar: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        quoted(grammar)
    assert caught.value.param == "tools"


def test_the_sets_of_characters_are_counted() -> None:
    sets = [f"[{chr(0x4E00 + i)}\\n]" for i in range(MAX_SETS + 1)]
    grammar = "start: " + " | ".join(f"/{one}{one}/" for one in sets[1:])
    assert quoted(grammar).count("\\(n)") == 2 * MAX_SETS
    with pytest.raises(InvalidRequest, match="different sets"):
        quoted(f"{grammar} | /{sets[0]}/")
