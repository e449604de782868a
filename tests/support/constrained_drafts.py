"""Rigs whose sequences follow grammars while tokens are drafted, watched matchers, and what is told of them."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from struct import iter_unpack

import pytest
from core.test_drafts import SAMPLINGS, Drafting, Replay
from llguidance import LLMatcher
from support.masker_lanes import masking

from llamafast._core.constraint import Constraint
from llamafast._core.step import FINISHED, PAUSED
from llamafast.chat.grammar.compiler import grammar_tokenizer

KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "hybrid": ("tiny-qwen35", {"n_rs_seq": 4}),
}
STOP, LENGTH, REFUSED = 1, 2, 3
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{12,20}$"}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OPTIONS = {"max_tokens": 60, "sampling": {"temperature": 1.0, "seed": 3}}


class Masked(Drafting):
    """A rig whose grammars are walked, and one beside it that drafts nothing."""

    def __init__(self, path, **settings):
        super().__init__(path, **settings)
        self.tokenizer = grammar_tokenizer(self.vocab)
        self._lanes = ExitStack()
        self.masking = self._lanes.enter_context(masking(self.runner.masker))

    def close(self):
        self._lanes.close()
        super().close()

    def matcher(self, grammar):
        """Of a regular expression, or of a JSON schema."""
        text = LLMatcher.grammar_from_regex(grammar) if isinstance(grammar, str) else json_grammar(grammar)
        matcher = LLMatcher(self.tokenizer, text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def constrained(self, matcher, prompt, tag, **options):
        return self.sequence(prompt, tag, constraint=Constraint(matcher, self.vocab.n_tokens), **options)


def json_grammar(schema):
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})


@contextmanager
def masked_rigs(tiny_model):
    """A function from the name of one of ``KINDS`` to its rig, made once."""
    made = {}

    def rig_of(kind):
        if kind not in made:
            name, settings = KINDS[kind]
            made[kind] = Masked(tiny_model(name), **settings)
        return made[kind]

    yield rig_of
    for rig in made.values():
        rig.close()


class Allowed(Replay):
    """Its wrong tokens are mostly ones that grammars allow, and now and then its draft goes on behind one."""

    def __call__(self, tag, tokens, most):
        if self.how != "wrong":
            return super().__call__(tag, tokens, most)
        right = self.truths[tag][len(tokens) : len(tokens) + most]
        return [token if self.chance.random() < 0.5 else self.chance.choice(b'abc012"') for token in right]


def works(grammars, n):
    """So many of all grammars, at different samplings, ends and lengths."""
    every = []
    for tag in range(n):
        prompt = [33 + (7 * tag + 13 * k * (tag + 1)) % 200 for k in range(3 + 17 * tag % 90)]
        own = {
            "sampling": SAMPLINGS[tag % len(SAMPLINGS)],
            "max_tokens": 12 + tag * 7 % 30,
            "top_logprobs": 2 if tag % 2 else -1,
            "stops": (b"b2",) if tag % 3 == 2 else (),
        }
        every.append((grammars[tag % len(grammars)], prompt, tag, own))
    return every


def told(rig, every, source, *, dress=lambda matcher: matcher):
    """Run them; what was told of each, and its tokens."""
    rig.script(source)
    sequences = []
    for grammar, prompt, tag, options in every:
        sequences.append(rig.constrained(dress(rig.matcher(grammar)), prompt, tag, **options))
        rig.runner.add(sequences[-1])
    while rig.runner.n_running:
        assert rig.runner.run(1) in (FINISHED, PAUSED)
        rig.runner.check()
        rig.tidy()
    heard = {}
    for tag, text, n_tokens, _, finish, logprobs, *_ in rig.outbox.drain():
        before = heard.get(tag, ("", 0, 0, []))
        entries = () if logprobs is None else iter_unpack("if", logprobs[1])
        pairs = [(token, pytest.approx(value, abs=1e-3)) for token, value in entries]
        heard[tag] = (before[0] + text, before[1] + n_tokens, finish, before[3] + pairs)
    return heard, {sequence.tag: list(sequence.tokens()) for sequence in sequences}


def nothing(*_):
    return []


class Watched:
    """A matcher that notes what it is told, and fails behind tokens that are named."""

    def __init__(self, matcher, *, fails=None, raises=None, pause=0.0):
        self.matcher, self.fails, self.raises, self.pause = matcher, fails, raises, pause
        self.walked, self.rolled_back, self.made = [], [], 0
        self.copies, self.failed = [], False

    def deep_copy(self):
        copy = Watched(self.matcher.deep_copy(), fails=self.fails, raises=self.raises, pause=self.pause)
        self.copies.append(copy)
        return copy

    def consume_token(self, token):
        self.walked.append(token)
        if self.fails is not None and self.fails(self.walked):
            if self.raises is not None:
                raise self.raises
            self.failed = True
            return False
        return self.matcher.consume_token(token)

    def consume_tokens(self, tokens):
        return all(self.consume_token(token) for token in tokens)

    def rollback(self, n):
        assert not self.failed
        self.rolled_back.append(self.walked[-n:])
        del self.walked[-n:]
        return self.matcher.rollback(n)

    def is_stopped(self):
        return self.failed or self.matcher.is_stopped()

    def is_error(self):
        return self.failed or self.matcher.is_error()

    def get_error(self):
        return "it failed here" if self.failed else self.matcher.get_error()

    def unsafe_compute_mask_ptr(self, pointer, n_bytes):
        if self.pause:
            threading.Event().wait(self.pause)
        self.matcher.unsafe_compute_mask_ptr(pointer, n_bytes)


def watched(into, **options):
    def dress(matcher):
        into.append(Watched(matcher, **options))
        return into[-1]

    return dress
