"""What bodies come to, counted piece by piece, and what too much of it is answered with."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

from llamafast.api import decode
from llamafast.api.body_size import ESCAPE_WORK, ITEM_WORK, MEMBER_WORK, QUOTE_WORK, BodyLimits, BodySize
from llamafast.api.delivery import INLINE_BYTES
from llamafast.api.keys import Keys
from llamafast.errors import BodyTooLarge

MIB = 2**20
AMPLE = 64 * MIB


def new_size() -> BodySize:
    return BodySize(BodyLimits(AMPLE, AMPLE))


def counted(body: bytes) -> int:
    """The same count, by a walk over single bytes."""
    work, in_string, escaped = 0, False, False
    for byte in body.decode("latin-1"):
        if escaped:
            escaped = False
        elif in_string and byte == "\\":
            escaped = True
            work += ESCAPE_WORK
        elif byte == '"':
            in_string = not in_string
            work += QUOTE_WORK
        elif not in_string:
            work += 1 + ITEM_WORK * (byte == ",") + MEMBER_WORK * (byte in "[{:")
    return work


JSON = st.recursive(
    st.none() | st.integers() | st.text('a"\\[{,:é\n', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('k"\\:', max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.lists(st.integers(1, 9), min_size=1, max_size=30), st.booleans())
def test_the_count_is_exact_however_a_body_is_cut(value: Any, sizes: list[int], ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii).encode()
    size, at = new_size(), 0
    while at < len(body):
        step = sizes[at % len(sizes)]
        size.add(body[at : at + step])
        at += step
    assert size._work == counted(body)
    assert size.n_bytes == len(body)


CALM = {
    "a data URL of 20 MiB": b'{"url":"data:image/png;base64,' + b"iVBO" * (7 * MIB) + b'"}',
    "escaped text": b'{"text":"' + b"\\u4e2d\\n" * 800_000 + b'"}',
    "brackets in a text": b'{"text":"' + b"[{,:" * MIB + b'"}',
    "300,000 ids": b'{"input":[' + b",".join([b"151643"] * 300_000) + b"]}",
    "a conversation": b'{"messages":[' + b",".join([b'{"role":"user","content":"' + b"word " * 50 + b'"}'] * 15_000)
    + b"]}",
    "indentation": b"{" + b" " * (4 * MIB) + b"}",
}  # fmt: skip
HOSTILE = {
    "numbers": b'{"prompt":[' + b"1," * 4_000_000,
    "lists": b'{"prompt":[' + b"[]," * 4_000_000,
    "objects": b'{"prompt":[' + b"{}," * 4_000_000,
    "strings": b'{"prompt":[' + b'"",' * 4_000_000,
    "members": b"{" + b'"a":1,' * 2_000_000,
    "brackets": b"[" * 8_000_000,
    "escapes": b'{"prompt":"' + b'\\"' * 8_000_000,
    "backslashes": b'{"prompt":"' + b"\\\\" * 8_000_000,
    "digits": b'{"prompt":[' + b"1" * 16_000_000,
}


@pytest.mark.parametrize("name", CALM)
def test_what_people_send_passes(name: str) -> None:
    size = new_size()
    size.add(CALM[name])
    assert size.n_bytes == len(CALM[name])


@pytest.mark.parametrize("name", HOSTILE)
def test_values_by_the_million_are_refused_while_they_come(name: str) -> None:
    size, piece = new_size(), 64 * 1024

    def add_all() -> None:
        for at in range(0, len(HOSTILE[name]), piece):
            size.add(HOSTILE[name][at : at + piece])

    with pytest.raises(BodyTooLarge, match="too many JSON values"):
        add_all()
    assert size.n_bytes < 0.8 * len(HOSTILE[name])


def test_a_prompt_that_the_model_can_read_is_no_matter_of_size() -> None:
    body = b'{"prompt":[' + b",".join([b"151643"] * 1_000_000) + b"]}"
    BodySize(BodyLimits(AMPLE, AMPLE, max_prompt=1_048_576)).add(body)
    with pytest.raises(BodyTooLarge):
        new_size().add(body)


@pytest.mark.parametrize("name", HOSTILE.keys() - {"numbers", "digits"})
def test_however_long_a_prompt_may_be_other_values_are_not_more(name: str) -> None:
    size = BodySize(BodyLimits(AMPLE, AMPLE, max_prompt=2**31))
    with pytest.raises(BodyTooLarge, match="too many JSON values"):
        size.add(HOSTILE[name])


async def test_the_answer_to_a_body_of_small_values(engine: FakeEngine) -> None:
    app = make_app(engine, max_body_bytes=MIB)
    app._limits.max_work = 1000
    client = AsgiClient(app)
    body = b'{"prompt":[' + b",".join([b"1"] * 200) + b"]}"
    response = await client.post("/v1/completions", [body[:100], body[100:]])
    assert (response.status, response.error["code"]) == (413, "body_too_large")
    assert "too many JSON values" in response.error["message"]
    assert (await client.post("/v1/completions", {"prompt": "1," * 200})).status == 200


FIELDS = {
    "/v1/completions": ({"prompt": "a"}, {"max_tokens": 8.0, "n": 2.0, "seed": 1e3, "logprobs": 0.0, "mirostat": 0.0}),
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": "a"}]},
        {"max_tokens": 8.0, "top_k": 40.0, "min_tokens": 1.0, "stop_token_ids": [3.0], "logit_bias": [[5.0, 1.0]]},
    ),
    "/v1/responses": ({"input": "a"}, {"max_output_tokens": 8.0, "top_logprobs": 0.0}),
    "/detokenize": ({}, {"tokens": [104.0, 105]}),
}


@pytest.mark.parametrize("path", FIELDS)
async def test_integral_numbers_are_integers(client: AsgiClient, path: str) -> None:
    needed, fields = FIELDS[path]
    assert (await client.post(path, needed | fields)).status == 200
    for name, value in fields.items():
        fraction = [value[0] + 0.5] if isinstance(value, list) and not isinstance(value[0], list) else 0.5
        response = await client.post(path, needed | {name: fraction})
        assert response.status == 400, name
        assert response.error["param"].partition("[")[0] == name


async def test_integral_numbers_of_a_prompt(client: AsgiClient, engine: FakeEngine) -> None:
    assert (await client.post("/v1/completions", b'{"prompt":[104.0,1.05e2]}')).status == 200
    assert engine.plan.prompts[0].tolist() == [104, 105]


async def test_no_large_body_is_decoded_on_the_event_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of hundreds of megabytes is one call, which takes as many milliseconds."""
    places: list[tuple[str, bool]] = []

    class Decoder:
        def decode(self, text: str) -> Any:
            places.append((path, threading.current_thread() is threading.main_thread()))
            return json.loads(text)

    monkeypatch.setattr(decode, "_JSON", Decoder())
    keys = tmp_path / "keys"
    keys.write_text("secret-root name=root admin\n")
    app = make_app(FakeEngine(), keys=Keys(keys), ollama_discovery=True, lora_dir=str(tmp_path))
    body = json.dumps({"model": "x" * INLINE_BYTES}).encode()
    for path in [route.path for route in app.routes.all if "POST" in route.methods and "{id}" not in route.path]:
        await AsgiClient(app).post(path, body, authorization="Bearer secret-root")
    assert {"/api/show", "/lora-adapters", "/v1/chat/completions"} <= {path for path, _ in places}
    assert not [path for path, is_on_the_loop in places if is_on_the_loop]
