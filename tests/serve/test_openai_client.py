"""The real openai package against the real server."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import openai
import pytest


@pytest.fixture
def client(scripted_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{scripted_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tiny(tiny_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"<|s_{text}|>"}]


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "scripted"
    assert client.models.retrieve("scripted").owned_by == "llamafast"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_a_model_id_with_a_slash(tiny):
    assert tiny.models.retrieve("tiny/llama").id == "tiny/llama"


def test_chat(client):
    answer = client.chat.completions.create(model="scripted", messages=ask("text"), temperature=0)
    assert answer.choices[0].message.content == "Hello there, this reply is fixed."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9


def test_chat_stream_has_the_same_text_and_usage(client):
    options = {"model": "scripted", "messages": ask("text"), "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_helper(client):
    with client.chat.completions.stream(model="scripted", messages=ask("json"), temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == '{"a": 1, "b": [true, null]}'


def test_max_completion_tokens(client):
    answer = client.chat.completions.create(
        model="scripted", messages=ask("text"), temperature=0, max_completion_tokens=3
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there,", "length")


def test_two_limits(client):
    limits = {"max_tokens": 4, "max_completion_tokens": 3}
    with pytest.raises(openai.BadRequestError, match="`max_completion_tokens` says something else than `max_tokens`"):
        client.chat.completions.create(model="scripted", messages=ask("text"), **limits)


def test_stop_strings(client):
    options = {"model": "scripted", "messages": ask("text"), "temperature": 0, "stop": ["s fix", "nope"]}
    answer = client.chat.completions.create(**options)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there, this reply i", "stop")
    chunks = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there, this reply i"


def test_completions_of_every_prompt_form(tiny):
    options = {"model": "tiny/llama", "temperature": 0, "max_tokens": 6}
    text = tiny.completions.create(prompt="hello world", **options).choices[0].text
    listed = tiny.completions.create(prompt=["hello world", "the end"], **options)
    assert [choice.index for choice in listed.choices] == [0, 1]
    assert listed.choices[0].text == text
    ids = tiny.completions.create(prompt=[104, 101, 108], **options)
    assert ids.usage.prompt_tokens == 3
    both = tiny.completions.create(prompt=[[104, 101, 108], [50]], **options)
    assert both.choices[0].text == ids.choices[0].text
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (4, 12)


def test_completion_stream_of_many_choices(tiny):
    options = {"model": "tiny/llama", "prompt": ["one", "two"], "n": 2, "seed": 5, "temperature": 1, "max_tokens": 8}
    whole = tiny.completions.create(**options)
    texts = [""] * 4
    for chunk in tiny.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 4


def test_echo(tiny):
    options = {"model": "tiny/llama", "prompt": "say it", "temperature": 0, "echo": True}
    assert tiny.completions.create(**options, max_tokens=0).choices[0].text == "say it"
    whole = tiny.completions.create(**options, max_tokens=4).choices[0].text
    assert whole.startswith("say it")
    assert "".join(c.choices[0].text for c in tiny.completions.create(**options, max_tokens=4, stream=True)) == whole


def test_logit_bias_decides(tiny):
    answer = tiny.completions.create(
        model="tiny/llama", prompt="x", max_tokens=5, temperature=0, logit_bias={"97": 100}, stop=["zzz"]
    )
    assert answer.choices[0].text == "aaaaa"


async def test_async_client_and_determinism_in_a_crowd(tiny_server):
    """Sixteen mixed requests at once answer what each answers alone."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none") as client:

        def request(i):
            prompt = [33 + (i * 31 + k * (i + 3)) % 300 for k in range(1 + 23 * i % 150)]
            return client.completions.create(model="", prompt=prompt, temperature=0, max_tokens=10 + 3 * i)

        alone = [(await request(i)).choices[0].text for i in range(16)]
        together = await asyncio.gather(*(request(i) for i in range(16)))
        assert [answer.choices[0].text for answer in together] == alone


def test_a_real_model(smollm2_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{smollm2_server.port}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Repeat after me: hello"}],
            temperature=0,
            max_tokens=24,
        )
        assert "hello" in answer.choices[0].message.content.lower()


@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
        ({"prompt": []}, openai.BadRequestError, None, "prompt"),
        ({"prompt": ""}, openai.BadRequestError, None, "prompt"),
        ({"prompt": [512]}, openai.BadRequestError, None, "prompt"),
        ({"prompt": [-1]}, openai.BadRequestError, None, "prompt"),
        ({"prompt": [33] * 5000}, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ({"temperature": 3}, openai.BadRequestError, None, "temperature"),
        ({"logit_bias": {"512": 1}}, openai.BadRequestError, None, "logit_bias"),
        ({"stop": [""]}, openai.BadRequestError, None, "stop"),
    ],
)
def test_errors(tiny, change, error, code, param):
    with pytest.raises(error) as caught:
        tiny.completions.create(**{"model": "tiny/llama", "prompt": "x"} | change)
    assert caught.value.code == code
    assert caught.value.param.startswith(param)
    assert caught.value.request_id


def test_a_text_is_filled_in(tiny_server):
    """As editors and as OpenAI's clients ask for it: the same prompt, so the same text."""
    request = {"input_prefix": "def f(", "input_suffix": "):\n", "n_predict": 6, "temperature": 0}
    url = f"http://127.0.0.1:{tiny_server.port}"
    body = json.dumps(request).encode()
    asked = urllib.request.Request(f"{url}/infill", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as response:
        answer = json.load(response)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        completion = client.completions.create(
            model="tiny/llama", prompt="def f(", suffix="):\n", max_tokens=6, temperature=0
        )
    assert answer["content"] == completion.choices[0].text
    assert (answer["tokens_predicted"], answer["stop_type"]) == (6, "limit")
    assert answer["tokens_evaluated"] == completion.usage.prompt_tokens
    assert answer["timings"]["predicted_n"] == 6
