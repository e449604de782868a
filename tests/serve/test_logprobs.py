"""Log probabilities through the real openai package."""

from __future__ import annotations

import math
import re

import openai
import pytest


@pytest.fixture
def tiny(tiny_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def legible(text, lists):
    """Every token lies in the text where its offset says."""
    for token, offset in zip(lists.tokens, lists.text_offset, strict=True):
        if "\ufffd" not in token:
            assert text[offset : offset + len(token)] == token
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs)


def test_chat(tiny):
    options = {
        "model": "tiny/llama", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12,
        "logprobs": True, "top_logprobs": 3, "extra_body": {"ignore_eos": True, "skip_special_tokens": False},
    }  # fmt: skip
    whole = tiny.chat.completions.create(**options).choices[0]
    content = whole.logprobs.content
    assert len(content) == 12
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace") == whole.message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-6)
        assert token.bytes == token.top_logprobs[0].bytes
        assert -math.inf < token.logprob <= 0
    streamed = []
    # of a prompt that is kept the last token is computed alone: a product of one row is rounded otherwise
    alone = {"extra_body": options["extra_body"] | {"cache_salt": "streamed"}}
    for chunk in tiny.chat.completions.create(**options | alone, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    assert streamed == content
    plain = tiny.chat.completions.create(**options | {"logprobs": False, "top_logprobs": None}).choices[0]
    assert plain.logprobs is None
    assert plain.message.content == whole.message.content


def test_completions(tiny):
    options = {"model": "tiny/llama", "prompt": ["one two", "three"], "temperature": 0, "max_tokens": 8, "n": 2}
    options |= {"logprobs": 4, "extra_body": {"ignore_eos": True}}
    for echo in (False, True):
        answer = tiny.completions.create(**options, echo=echo)
        for choice in answer.choices:
            legible(choice.text, choice.logprobs)
            assert (choice.logprobs.token_logprobs[0] is None) == echo
            assert all(len(top) >= 1 for top in choice.logprobs.top_logprobs[1:])
        chunks = list(tiny.completions.create(**options, echo=echo, stream=True))
        for choice in answer.choices:
            parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            told = [part.logprobs for part in parts if part.logprobs]
            assert [token for lists in told for token in lists.tokens] == choice.logprobs.tokens
            assert [offset for lists in told for offset in lists.text_offset] == choice.logprobs.text_offset


def test_scoring_a_prompt(tiny):
    """What evaluation harnesses send: nothing is generated; a cached prefix changes nothing."""
    options = {"model": "tiny/llama", "prompt": list(range(40, 90)), "echo": True, "logprobs": 1, "max_tokens": 0}
    first = tiny.completions.create(**options)
    tiny.completions.create(model="tiny/llama", prompt=options["prompt"], max_tokens=5, temperature=0)
    again = tiny.completions.create(**options)
    lists = first.choices[0].logprobs
    assert again.choices[0].logprobs == lists
    assert (len(lists.tokens), lists.token_logprobs[0]) == (50, None)
    assert all(logprob < 0 for logprob in lists.token_logprobs[1:])
    assert first.usage.completion_tokens == 0
    assert first.choices[0].finish_reason == "length"
    one_more = tiny.completions.create(**options | {"max_tokens": 1, "temperature": 0}).choices[0].logprobs
    assert one_more.token_logprobs[1:50] == pytest.approx(lists.token_logprobs[1:], abs=1e-3)


def test_best_of(tiny):
    options = {"model": "tiny/llama", "prompt": "x", "max_tokens": 6, "temperature": 1.5, "seed": 3, "logprobs": 0}

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / max(1, len(choice.logprobs.token_logprobs))

    every = tiny.completions.create(**options, n=5).choices
    best = tiny.completions.create(**options, n=2, best_of=5)
    likeliest = sorted(sorted(every, key=mean, reverse=True)[:2], key=lambda choice: choice.index)
    assert [choice.text for choice in best.choices] == [choice.text for choice in likeliest]
    assert [choice.index for choice in best.choices] == [0, 1]
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.completions.create(**options, n=1, best_of=2, stream=True)
    assert caught.value.param == "best_of"


def test_tokens_as_ids(tiny):
    options = {"model": "tiny/llama", "prompt": [97, 98], "max_tokens": 0, "echo": True, "logprobs": 1}
    lists = tiny.completions.create(**options, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
    assert lists.tokens == ["token_id:97", "token_id:98"]


# much that the grammar forces, something that it leaves open
LETTER = "Dear (reader|friend), this is letter number [0-9]{3} of the series\\."


def test_of_constrained_text(tiny):
    """Each token has the model's own log probability, of which masks are no part: also one that had no alternative."""
    options = {"model": "tiny/llama", "prompt": list(range(40, 60)), "temperature": 1, "seed": 5, "max_tokens": 90}
    as_ids = {"return_tokens_as_token_ids": True, "guided_regex": LETTER}
    choice = tiny.completions.create(**options, logprobs=2, extra_body=as_ids).choices[0]
    ids = [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]
    assert choice.finish_reason == "stop"
    assert re.fullmatch(LETTER, choice.text)
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs)
    scored = tiny.completions.create(
        model="tiny/llama", prompt=options["prompt"] + ids, echo=True, logprobs=1, max_tokens=0
    ).choices[0]
    assert scored.text.endswith(choice.text)
    assert scored.logprobs.token_logprobs[20:] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-3)
    # without log probabilities tokens are forced several at once; the text obeys all the same
    assert re.fullmatch(LETTER, tiny.completions.create(**options, extra_body={"guided_regex": LETTER}).choices[0].text)


def test_of_constrained_chat(tiny):
    options = {
        "model": "tiny/llama", "messages": [{"role": "user", "content": "hi"}], "temperature": 1, "seed": 3,
        "max_tokens": 90, "logprobs": True, "top_logprobs": 2, "extra_body": {"guided_regex": LETTER},
    }  # fmt: skip
    whole = tiny.chat.completions.create(**options).choices[0]
    content = whole.logprobs.content
    assert re.fullmatch(LETTER, whole.message.content)
    assert b"".join(bytes(token.bytes) for token in content).decode() == whole.message.content
    streamed, text = [], ""
    for chunk in tiny.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            streamed += choice.logprobs.content if choice.logprobs else []
    assert (streamed, text) == (content, whole.message.content)
