"""Further names of a model on the wire: exact ones and patterns, for clients that insist on a name."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine

from llamafast.config.names import MAX_NAME, answers_to, strictness

TEXT = st.text("ab*.[\n", max_size=6)
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
}


@pytest.fixture
def client() -> AsgiClient:
    return AsgiClient(make_app(FakeEngine(info=replace(INFO, aliases=("text-davinci-003", "gpt-*")))))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["text-davinci-003", "gpt-", "gpt-4o-mini"])
async def test_a_request_may_use_any_of_them_and_reads_it_again(client: AsgiClient, path: str, name: str) -> None:
    answer = await client.post(path, PATHS[path] | {"model": name})
    assert answer.status == 200
    assert answer.json["model"] == name


@pytest.mark.parametrize("name", ["gpt", "xgpt-4", "text-davinci-00", "Gpt-4"])
async def test_others_are_not_found(client: AsgiClient, name: str) -> None:
    answer = await client.post("/v1/completions", {"prompt": "hi", "model": name})
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert "'gpt-*'" in answer.error["message"]


async def test_they_are_listed_with_the_model(client: AsgiClient) -> None:
    (model,) = (await client.get("/v1/models")).json["data"]
    assert model["aliases"] == ["text-davinci-003", "gpt-*"]
    assert (await client.get("/v1/models/gpt-4o")).json == model
    assert (await client.get("/v1/models/claude")).status == 404


def test_no_name_makes_a_pattern_work_long() -> None:
    """An expression of three stars takes minutes for this one."""
    began = time.thread_time()
    for name in ("a" * 100_000, "a" * MAX_NAME):
        assert not answers_to(name, ["*a*a*a*b"])
    assert time.thread_time() - began < 0.1


def test_a_name_that_is_too_long_is_no_patterns() -> None:
    assert answers_to("x" * MAX_NAME, ["*"])
    assert not answers_to("x" * (MAX_NAME + 1), ["*"])
    assert answers_to("x" * (MAX_NAME + 1), ["*", "x" * (MAX_NAME + 1)])


@given(TEXT, st.lists(TEXT, max_size=4))
def test_patterns_are_those_of_the_shell(name: str, parts: list[str]) -> None:
    pattern = "*".join(parts).replace("[", "(")
    assert answers_to(name, [pattern]) == fnmatchcase(name, pattern)


def test_a_pattern_is_as_strict_as_it_has_characters() -> None:
    assert strictness("gpt-4*") > strictness("gpt-*") > strictness("*")


@given(st.lists(TEXT, min_size=1, max_size=4), st.lists(TEXT, min_size=3, max_size=3))
def test_stars_stand_for_any_text_and_nothing_else_does(parts: list[str], fill: list[str]) -> None:
    plain = [part.replace("*", "") for part in parts]
    name = plain[0] + "".join(b + a for a, b in zip(plain[1:], fill, strict=False))
    assert answers_to(name, ["*".join(plain)])
    assert not answers_to("x" + "".join(plain), ["".join(plain) or "y"])


@pytest.mark.parametrize(
    ("alias", "path"), [("/chat/completions", "/v1/chat/completions"), ("/responses", "/v1/responses")]
)
async def test_paths_that_other_servers_have_for_the_same(client: AsgiClient, alias: str, path: str) -> None:
    told, same = [await client.post(each, PATHS[path]) for each in (alias, path)]
    assert told.status == 200
    assert told.json.keys() == same.json.keys()


@pytest.mark.parametrize(
    ("path", "names_it"),
    [
        ("/v1/batches", True),
        ("/v1/files", True),
        ("/v1/files/a/content", True),
        ("/v1/messages/batches", True),
        ("/v1/filesystem", False),
    ],
)
async def test_what_is_kept_elsewhere_has_a_command_in_its_place(client: AsgiClient, path: str, names_it: bool) -> None:
    response = await client.post(path, {})
    assert (response.status, "`llamafast batch`" in response.json["error"]["message"]) == (404, names_it)
