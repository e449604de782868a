"""A server of a real model, and a collector that reads what comes of it."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from support.collector import collector, values
from support.server_process import Process

from serve.conftest import model_config

# Which waits at its end for as long as a busy machine takes.
PATIENT = "-c " + shlex.quote(
    "import sys; from llamafast.cli import main; from llamafast.traces import exporter; "
    "exporter.FLUSH_SECONDS = 60.0; sys.exit(main(['serve', sys.argv[1]]))"
)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_requests_of_a_client_are_spans_and_none_is_lost_at_the_end(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with collector() as there:
        config = model_config(tiny_model("tiny-scripted"), 0, alias="scripted")
        config["server"] = {"port": 0, "otlp_endpoint": there.endpoint, "request_log": False}
        with Process(tmp_path, config, program=PATIENT) as process:
            try:
                process.until_serving()
                base = f"http://127.0.0.1:{process.port}"
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=1,congo=2"}
                with openai.OpenAI(
                    base_url=f"{base}/v1", api_key="x", max_retries=0, default_headers=headers
                ) as client:
                    pieces = client.chat.completions.create(
                        model="scripted", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
                    )
                    (reply_id,) = {piece.id for piece in pieces}
                    client.completions.create(model="scripted", prompt="x", max_tokens=2, n=2)
                    with pytest.raises(openai.BadRequestError):
                        client.embeddings.create(model="scripted", input="x")
                dropped = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
                httpx.post(f"{base}/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=dropped, timeout=60)
                process.send_signal(signal.SIGTERM)
                process.ended(30)
                log = process.log
            finally:
                process.kill()
        assert [span.name for span in there.spans] == [
            "chat scripted",
            "text_completion scripted",
            "embeddings scripted",
        ]
        assert {span.trace_id.hex() for span in there.spans} == {TRACE}
        assert {span.parent_span_id.hex() for span in there.spans} == {PARENT}
        assert {span.trace_state for span in there.spans} == {"rojo=1,congo=2"}
        assert there.resources[0]["service.name"] == "llamafast"
        chat, completion, refused = there.spans
    told = values(chat.attributes)
    assert told["gen_ai.response.id"] == reply_id
    assert told["gen_ai.usage.input_tokens"] > 0
    assert 0 < told["gen_ai.usage.output_tokens"] <= 8
    assert [event.name for event in chat.events] == ["admitted", "first_token"]
    times = [chat.start_time_unix_nano, *(event.time_unix_nano for event in chat.events), chat.end_time_unix_nano]
    assert times == sorted(times)
    assert values(completion.attributes)["gen_ai.request.choice.count"] == 2
    assert (refused.status.code, values(refused.attributes)["http.response.status_code"]) == (0, 400)
    assert f"traces   {there.endpoint}/v1/traces" in log
    assert "Traceback" not in log
