"""A prompt that does not fit: the code and the words by which clients make room on their own."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

LONG = "a" * 600
SENTENCE = re.compile(
    r"This model's maximum context length is (\d+) tokens\. However, your ([\w\[\]]+) resulted in "
    r"(?:more than )?(\d+) tokens\. Please reduce the length of the \2\."
)


@pytest.mark.parametrize("n_chars", [600, 500_000])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "TEXT"}, "prompt"),
        ("completions", {"prompt": ["a", "TEXT"]}, "prompt[1]"),
        ("chat/completions", {"messages": [{"role": "user", "content": "TEXT"}]}, "messages"),
        ("responses", {"input": "TEXT"}, "input"),
        ("responses", {"input": [{"role": "user", "content": "TEXT"}], "truncation": "auto"}, "input"),
        ("responses/input_tokens", {"input": "TEXT"}, "input"),
    ],
)
async def test_the_sentence_names_what_was_sent(
    client: AsgiClient, path: str, body: dict[str, Any], param: str, n_chars: int
) -> None:
    response = await client.post(f"/v1/{path}", json.dumps(body).replace("TEXT", "a" * n_chars).encode())
    assert response.status == 400
    assert (response.error["code"], response.error["param"]) == ("context_length_exceeded", param)
    said = SENTENCE.match(response.error["message"])
    assert said is not None
    assert (said[1], said[2]) == ("512", param)
    assert int(said[3]) > 512


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain_knows_it(engine: FakeEngine, responses: bool) -> None:
    transport = httpx2.ASGITransport(make_app(engine, max_body_bytes=1 << 20))
    async with httpx2.AsyncClient(transport=transport) as http:
        model = ChatOpenAI(
            base_url="http://test/v1", api_key="none", model="org/fake-model", max_retries=0, http_async_client=http,
            use_responses_api=responses,
        )  # fmt: skip
        with pytest.raises(ContextOverflowError) as caught:
            await model.ainvoke(LONG)
    assert isinstance(caught.value, openai.BadRequestError)
