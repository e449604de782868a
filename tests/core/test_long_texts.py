"""Texts that llama.cpp's tokeniser alone answers by ending the process. Each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# of each kind one: libstdc++'s matcher calls itself once a character of a run that these split by an expression
PRE_TOKENIZERS = ("gpt-4o", "tekken", "deepseek-v3", "deepseek-llm", "seed-coder")
N_CHARACTERS = 60_000

OPEN = """
import json, sys, threading
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.errors import Untokenizable

path, pre, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
vocab = Vocab(Model(path, vocab_only=True, kv_overrides={"tokenizer.ggml.pre": pre}))

def spelled(text):
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text
"""

RUNS = """
for unit in ("a", "A", " ", "\\n", "!", "é"):
    spelled(unit * n)
threads = [threading.Thread(target=spelled, args=(unit * n,)) for unit in "ab"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

LIMIT = """
assert 10 * n < vocab.longest_text < 2**24
try:
    spelled("a " * (vocab.longest_text // 2 + 1))
except Untokenizable as error:
    assert str(vocab.longest_text) in error.message
else:
    raise AssertionError("a text beyond the limit was tokenised")
"""

SCHEMA = """
from llamafast.chat.grammar.compiler import compiled, grammar_tokenizer

tokenizer = grammar_tokenizer(vocab)
matcher = compiled(tokenizer, json.dumps({"grammars": [{"json_schema": {"const": "a" * n}}]}))
matcher.compute_bitmask()
forced = matcher.compute_ff_tokens()
assert b"".join(map(vocab.piece, forced)).decode() == json.dumps("a" * n)
# beyond what one stack holds: in pieces, and all of it
long = b"b" * (vocab.longest_text + 10)
assert b"".join(map(vocab.piece, tokenizer.tokenize_bytes(long))) == long
"""

# The vocabulary of single bytes as one of SentencePiece's, without tokens for bytes that it does not spell.
NO_BYTES = """
from llamafast.chat.grammar.compiler import compiled, grammar_tokenizer

vocab = Vocab(Model(path, vocab_only=True, kv_overrides={
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}))
spelled("ab")
for text in ("\\u4e2d", "x" * n + "\\u4e2d"):
    try:
        spelled(text)
    except Untokenizable as error:
        assert "cannot spell" in error.message
    else:
        raise AssertionError(text)
tokenizer = grammar_tokenizer(vocab)
assert tokenizer.tokenize_bytes(b"ab") == [97, 98]
for grammar in ({"json_schema": {"const": "\\u4e2d"}}, {"lark_grammar": 'start: "\\u4e2d" | "a" "\\u4e2d"'}):
    compiled(tokenizer, json.dumps({"grammars": [grammar]}))
"""


def run(code: str, path: Path, pre: str = "") -> None:
    # for a failed assertion's message and for a signal's number
    command = [sys.executable, "-c", OPEN + code, str(path), pre, str(N_CHARACTERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_long_runs_are_tokenised(tiny_model, pre):
    run(RUNS + LIMIT, tiny_model("tiny-llama"), pre)


@pytest.mark.parametrize("pre", ["gpt-4o", pytest.param("deepseek-llm", marks=pytest.mark.heavy)])
def test_what_a_schema_forces_is_tokenised(tiny_model, pre):
    run(SCHEMA, tiny_model("tiny-llama"), pre)


def test_where_no_expression_splits_only_memory_bounds_a_text(tiny_model):
    run('assert vocab.longest_text > 2**30\nspelled("a" * 1_000_000)', tiny_model("tiny-llama"), "qwen2")


def test_a_character_that_a_vocabulary_cannot_spell_is_an_error(tiny_model):
    run(NO_BYTES, tiny_model("tiny-llama"), "qwen2")
