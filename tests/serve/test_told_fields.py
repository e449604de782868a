"""What a real server tells of fields that it does not read, of refusals and of its model, in answers and in its log."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from support.server_process import Process

from recipes import tiny_gguf
from serve.conftest import model_config


def ask(port: int, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any], str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    told = json.loads(response.read())
    connection.close()
    return response.status, told, response.getheader("x-llamafast-ignored", "")


def test_nothing_vanishes(tmp_path: Path) -> None:
    config = model_config(tiny_gguf.build("tiny-llama"), 0, alias="tiny")
    config["server"] = {"port": 0, "drain_seconds": 1, "log_format": "json"}
    with Process(tmp_path, config) as process:
        try:
            process.until_serving()
            port = process.port
            good = {"prompt": "a", "max_tokens": 2, "temperature": 0}
            status, plain, header = ask(port, "/v1/completions", good)
            assert (status, header) == (200, "")
            status, told, header = ask(port, "/v1/completions", {"prompt": "a", "num_predict": 2, "temp": 0, "new": 1})
            assert (status, told["choices"], header) == (200, plain["choices"], "new")
            status, told, _ = ask(port, "/v1/completions", {**good, "max_token": 5})
            assert (status, told["error"]["message"]) == (400, "`max_token`: did you mean `max_tokens`?")
            status, told, _ = ask(port, "/api/tags", None)
            assert (status, "GET /v1/models" in told["error"]["message"]) == (404, True)
            _, models, _ = ask(port, "/v1/models", None)
            (model,) = models["data"]
            assert model["capabilities"] == ["completion", "tools", "insert"]
            assert (model["quantization"], model["arch"]) == ("F32", "llama")
            assert model["meta"]["size"] >= 4 * model["meta"]["n_params"] > 1000
            assert model["meta"]["n_ctx"] == model["max_model_len"]
            process.terminate()
            process.wait(30)
        finally:
            process.kill()
    lines = [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    first, second, third, fourth = (line for line in lines if line["message"] == "request")
    assert (first["finish"], first["stream"], first["completion"]) == ("length", False, 2)
    assert (second["ignored"], second["status"]) == ("new", 200)
    assert (third["param"], third["code"]) == ("max_token", "unknown_parameter")
    assert (fourth["route"], fourth["path"], fourth["status"]) == ("other", "/api/tags", 404)
    assert [line["level"] for line in lines if "`new`" in line["message"]] == ["warning"]
