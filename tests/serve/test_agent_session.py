"""A session in the shape of Claude Code's: what of each turn's prompt has to be computed."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from benchmarks.server import Server

PATH = "/v1/messages?beta=true"
# the model answers to a trigger in the last of the messages: with thoughts, a text and a call, or a text
CALLS, ENDS = "<|s_all|>", "<|s_text|>"


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


KEPT = {"cache_control": {"type": "ephemeral"}}
NAMES = ["get_weather", *(f"tool{i}" for i in range(19))]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[dict[str, Any]] = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
TOOLS += [{"name": "later", "defer_loading": True, "input_schema": {"type": "object", "properties": {}}}]


def request(turns: list[dict[str, Any]], n: int) -> dict[str, Any]:
    """The ``n``-th: another billing line each time, and the newest user's turn is the one to keep."""
    newest = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    marked = [
        {**turn, "content": [*turn["content"][:-1], {**turn["content"][-1], **KEPT}]} if i == newest else turn
        for i, turn in enumerate(turns)
    ]
    # a system turn is a list of blocks when it is new, and a string from then on
    last = marked[-1]
    if last["role"] == "system":
        marked[-1] = {**last, "content": [text(last["content"])]}
    return {
        "model": "scripted",
        "max_tokens": 32000,
        "stream": n % 2 == 0,
        "system": [
            text(f"x-anthropic-billing-header: cc_version=2.1.332; cc_entrypoint=cli; cch={n:05};"),
            text("You are an agent.", **KEPT),
            text("Instructions. " * 5, **KEPT),
        ],
        "tools": TOOLS,
        "messages": marked,
        "metadata": {"user_id": f"u{n}"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "temperature": 0,
    }


def post(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """The message, whichever way it is told."""
    url = f"http://127.0.0.1:{server.port}{PATH}"
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "x"}
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        raw = response.read().decode()
    if not body["stream"]:
        told: dict[str, Any] = json.loads(raw)
        return told
    message: dict[str, Any] = {}
    for frame in raw.strip().split("\n\n"):
        event = json.loads(frame.partition("data: ")[2])
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append({**event["content_block"], "input": ""})
            case "content_block_delta":
                for name, piece in event["delta"].items():
                    name = {"partial_json": "input"}.get(name, name)
                    if name != "type":
                        message["content"][event["index"]][name] += piece
            case "message_delta":
                message |= {"usage": event["usage"], "stop_reason": event["delta"]["stop_reason"]}
    for block in message["content"]:
        given = block.pop("input")
        if block["type"] == "tool_use":
            block["input"] = json.loads(given)
    return message


def test_each_turn_computes_what_is_new_and_little_more(scripted_server: Server) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [text("<system-reminder>\nContext.\n</system-reminder>"), text("Weather?")]},
        {"role": "system", "content": f"# Environment\nA folder. {CALLS}"},
    ]
    sums, computed = [], []
    for n in range(6):
        message = post(scripted_server, request(turns, n))
        usage = message["usage"]
        assert usage["cache_creation_input_tokens"] == 0
        computed.append(usage["input_tokens"])
        sums.append(usage["input_tokens"] + usage["cache_read_input_tokens"])
        assert message["stop_reason"] == "tool_use"
        assert message["content"][0]["thinking"] == ""
        call = message["content"][-1]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": f"Cloudy, {n} degrees. " * 2}
        turns += [
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": [result]},
            {"role": "system", "content": f"<total_tokens>{sums[-1]}</total_tokens> {CALLS}"},
        ]
    assert sums[0] > 1500
    n_new = sums[-1] - sums[0]
    assert n_new > 400
    # less than what is new: the answers were computed as they were written
    assert sum(computed[1:]) <= 1.05 * n_new, (sums, computed)
