"""Anthropic's clients and a model with fixed answers: its own package of two generations, and Vercel's AI SDK."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import Server
from serve.test_responses_node import installed, run_node

SCRIPT = Path(__file__).with_name("anthropic_client.py")
# Where `make test-faults` puts the generation of the package before.
OLDER = Path(__file__).parents[2] / ".cache" / "anthropic-0"
TEXT = "Hello there, this reply is fixed."


def called(city: str) -> dict[str, Any]:
    return {"type": "tool_use", "name": "get_weather", "input": {"city": city}}


def spoken(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "llamafast"}


ANSWERS = {
    "text": [spoken(TEXT)],
    "think": [thought("Let me reason briefly."), spoken("The answer is 4.")],
    "tool": [called("Paris")],
    "calls": [spoken("Two calls."), called("Rome"), called("Oslo")],
    "all": [thought("I need the weather."), spoken("On it."), called("Bonn")],
}


@pytest.fixture(scope="module")
def url(scripted_server: Server) -> str:
    return f"http://127.0.0.1:{scripted_server.port}"


@pytest.fixture(
    scope="module", params=[pytest.param(None, id="2"), pytest.param(OLDER, id="0", marks=pytest.mark.heavy)]
)
def checks(url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the package saw."""
    older = {} if request.param is None else {"PYTHONPATH": str(request.param)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), url], env=os.environ | older, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = {line.pop("check"): line for line in map(json.loads, done.stdout.splitlines())}
    assert told["generation"]["version"].startswith("2." if request.param is None else "0.")
    return told


def test_what_is_streamed_is_what_is_told_whole(checks: dict[str, Any]) -> None:
    for trigger, blocks in ANSWERS.items():
        check = checks[trigger]
        assert check["whole"]["blocks"] == blocks
        assert check["whole"]["stop_reason"] == ("tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn")
        assert check["streamed"] == check["whole"]
        assert (check["kinds"][0], check["kinds"][-1]) == ("message_start", "message_stop")
        assert check["kinds"].count("content_block_stop") == len(blocks)


def test_tokens_are_counted_as_a_message_sums_them(checks: dict[str, Any]) -> None:
    assert checks["count"]["n"] == checks["all"]["whole"]["input"]


def test_tools_are_chosen(checks: dict[str, Any]) -> None:
    (forced,) = checks["forced"]["blocks"]
    assert (forced["type"], forced["name"], list(forced["input"])) == ("tool_use", "get_weather", ["city"])
    assert checks["none"]["blocks"][0]["text"].startswith("<tool_call>")
    assert checks["none"]["stop_reason"] == "end_turn"
    assert checks["one"]["blocks"] == ANSWERS["calls"][:2]


def test_ends(checks: dict[str, Any]) -> None:
    stopped, short = checks["stopped"], checks["short"]
    assert (stopped["blocks"], stopped["stop_reason"]) == ([spoken("Hello there, this ")], "stop_sequence")
    assert stopped["stop_sequence"] == "reply"
    assert 5 <= stopped["output"] <= 6
    assert (short["stop_reason"], short["output"], short["blocks"]) == ("max_tokens", 2, [spoken("Hello there")])


def test_tools_are_run_and_what_they_say_is_answered(checks: dict[str, Any]) -> None:
    for stream in (False, True):
        asks, answers = checks[f"runner {stream}"]["turns"]
        assert (asks["blocks"], answers["blocks"]) == (ANSWERS["calls"], ANSWERS["text"])


def test_a_model_of_the_answer_and_models(checks: dict[str, Any]) -> None:
    assert checks["parse"]["city"]
    assert checks["models"] == {"ids": ["scripted"], "one": "scripted"}


def test_errors(checks: dict[str, Any]) -> None:
    unknown, long, thread = checks["unknown model"], checks["too long"], checks["thread"]
    assert (unknown["kind"], unknown["type"]) == ("NotFoundError", "not_found_error")
    assert long["message"].startswith("prompt is too long: ")
    assert thread["details"]["error_code"] == "thread_unsupported_request"
    assert all(error["id"].startswith("req_") for error in (unknown, long, thread))


def test_an_asynchronous_client_and_one_that_leaves(checks: dict[str, Any]) -> None:
    assert checks["async"]["blocks"] == checks["left"]["blocks"] == ANSWERS["text"]
    assert "".join(checks["async stream"]["texts"]) == "The answer is 4."
    assert checks["async stream"]["blocks"] == ANSWERS["think"]


@pytest.mark.heavy
def test_vercels_ai_sdk(url: str) -> None:
    saw = run_node(installed(Path(__file__).with_name("anthropic_client.mjs")), f"{url}/v1")
    for trigger, reasoning, text, calls in (
        ("text", None, TEXT, []),
        ("think", "Let me reason briefly.", "The answer is 4.", []),
        ("all", "I need the weather.", "On it.", [["get_weather", {"city": "Bonn"}]]),
    ):
        for check in (saw[trigger], saw[f"{trigger} streamed"]):
            assert (check.get("reasoning"), check["text"], check["calls"]) == (reasoning, text, calls)
            assert check["finish"] == ("tool-calls" if calls else "stop")
    assert saw["loop"] == {"text": TEXT, "steps": 2}
    assert saw["object"]["object"]["city"] in ("Rome", "Oslo")
    assert saw["too long"]["status"] == 400
