"""Real models in processes of their own, by the clients that people use."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pool.processes import ASK, alive, answered, client_of, started
from websockets.sync.client import connect

pytestmark = pytest.mark.scale


def test_chat_and_embeddings_of_two_models(folder: Path, chat: dict[str, Any], minilm: Path) -> None:
    embed = {"alias": "embed", "path": str(minilm), "aliases": ["text-embedding-*"], "load": "on_demand", "threads": 1}
    with started(folder, {"models": [chat | {"aliases": ["gpt-*"]}, embed]}) as server:
        with client_of(server) as client:
            assert [model.id for model in client.models.list()] == ["chat", "embed"]
            whole = client.chat.completions.create(model="gpt-4o", **ASK)
            pieces = client.chat.completions.create(model="chat", stream=True, **ASK)
            text = "".join(one.choices[0].delta.content or "" for one in pieces)
            assert text == whole.choices[0].message.content
            vectors = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
            assert [len(one.embedding) for one in vectors.data] == [384, 384]
            with pytest.raises(openai.NotFoundError, match="'gpt-\\*'"):
                client.chat.completions.create(model="claude", **ASK)
            with pytest.raises(openai.BadRequestError, match="does not generate"):
                client.chat.completions.create(model="embed", **ASK)
            with pytest.raises(openai.AuthenticationError), client_of(server, "wrong") as stranger:
                stranger.models.list()
        metrics = server.client.get("/metrics").text
        assert 'llamafast:build_info{llama_cpp_python="0.3.36",model="embed"' in metrics
        assert 'llamafast:embedding_inputs_total{model="embed"} 2.0' in metrics
        assert server.process.log.count("route=/v1/embeddings") == 1  # once, and by whom it answered
        assert "[embed] request" in server.process.log
        assert "Traceback" not in server.process.log


def test_memory_is_measured_and_makes_room_by_it(folder: Path, chat: dict[str, Any], other: dict[str, Any]) -> None:
    """Each needs some 70 MB: two of them do not fit into 100."""
    config = {"models": [chat, other], "pool": {"max_bytes": 100_000_000}}
    with started(folder, config) as server, client_of(server) as client:
        (first,) = server.children()
        client.chat.completions.create(model="other", **ASK)
        assert server.states() == {"chat": "unloaded", "other": "loaded"}
        assert not alive(first)
        metrics = server.client.get("/metrics").text
        assert 'llamafast:model_evictions_total{model="chat"} 1.0' in metrics
        (taken,) = [line for line in metrics.splitlines() if line.startswith('llamafast:model_bytes{model="other"}')]
        assert 30e6 < float(taken.split()[1]) < 100e6
        assert server.client.get("/health").status_code == 200


def test_a_model_that_sleeps_is_woken_by_the_next_request(folder: Path, chat: dict[str, Any]) -> None:
    """One model with a time to live is a pool of one."""
    config = {"model": chat | {"ttl_seconds": 1.0}, "disk_cache": {"path": str(folder / "disk"), "max_bytes": 10**8}}
    with started(folder, config) as server, client_of(server) as client:
        said = client.chat.completions.create(model="chat", **ASK).choices[0].message.content
        server.until_state("chat", "unloaded")
        assert server.children() == []
        assert server.client.get("/health").status_code == 200  # which does not wake it
        assert server.client.get("/metrics").status_code == 200
        assert server.states() == {"chat": "unloaded"}
        answer = server.client.post("/v1/chat/completions", json=ASK)  # the only model needs no name
        assert answer.json()["choices"][0]["message"]["content"] == said


def test_a_model_that_is_not_there_is_told(folder: Path, chat: dict[str, Any]) -> None:
    config = {"models": [chat, {"alias": "none", "path": str(folder / "none.gguf"), "load": "on_demand"}]}
    with started(folder, config) as server:
        for _ in range(4):
            answer = server.client.post("/v1/chat/completions", json={**ASK, "model": "none"})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_load_failed"
            assert "no such file" in answer.json()["error"]["message"]
        (_, none) = server.client.get("/v1/models").json()["data"]
        assert none["status"] == {"value": "unloaded"}
        assert server.client.post("/v1/chat/completions", json={**ASK, "model": "chat"}).status_code == 200


def test_two_models_two_keys_one_folder_stored_responses_and_a_socket(
    folder: Path, chat: dict[str, Any], other: dict[str, Any]
) -> None:
    disk = folder / "disk"
    config = {"models": [chat, other], "disk_cache": {"path": str(disk), "max_bytes": 10**8, "min_tokens": 16}}
    with started(folder, config, patient=True) as server:
        url = f"ws://127.0.0.1:{server.process.port}/v1/responses"
        ids: dict[tuple[str, str], str] = {}
        for key in ("a", "b"):
            with connect(url, additional_headers={"authorization": f"Bearer secret-{key}"}) as socket:
                for model in ("chat", "other"):
                    first = answered(socket, model=model, input="word " * 100, max_output_tokens=8)
                    ids[key, model] = first["id"]
                    assert first["usage"]["input_tokens_details"]["cached_tokens"] == 0  # whatever the other key said
                    again = answered(socket, model=model, input="word " * 100, max_output_tokens=8)
                    assert again["usage"]["input_tokens_details"]["cached_tokens"] > 64
                    more = answered(socket, model=model, input="on", previous_response_id=first["id"])
                    assert more["previous_response_id"] == first["id"]
        for (key, model), response_id in ids.items():
            for reader in ("a", "b"):
                answer = server.client.get(f"/v1/responses/{response_id}", headers={"x-api-key": f"secret-{reader}"})
                assert answer.status_code == (200 if reader == key else 404)
            other_model = "other" if model == "chat" else "chat"
            body = {"model": other_model, "input": "on", "previous_response_id": response_id, "max_output_tokens": 4}
            answer = server.client.post("/v1/responses", json=body, headers={"x-api-key": f"secret-{key}"})
            assert answer.json()["model"] == other_model
        for name in ("chat", "other"):
            server.unload(name)
            server.until_state(name, "unloaded")
        assert len(list(disk.iterdir())) == 2  # a folder for each
        assert all(list(one.rglob("*.safetensors")) for one in disk.iterdir())
        # what was said outlives the process that said it
        response_id = ids["a", "chat"]
        assert server.client.get(f"/v1/responses/{response_id}").json()["id"] == response_id
        assert server.client.delete(f"/v1/responses/{response_id}").json()["deleted"] is True
        assert server.children() == []
        body = {"model": "chat", "input": "word " * 100, "max_output_tokens": 4}
        cached = server.client.post("/v1/responses", json=body).json()["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached > 64  # read from the disk by another process
        assert server.client.post("/reset_prefix_cache", headers=server.root).status_code == 200
        # of the one that is loaded, and of the one that is not
        server.until(lambda: not list(disk.rglob("*.safetensors")))
        assert "Traceback" not in server.process.log


def test_nobody_but_the_parent_reaches_a_child_and_it_ends_with_it(folder: Path, chat: dict[str, Any]) -> None:
    with started(folder, {"models": [chat]}) as server:
        (private,) = (folder / "tmp").glob("llamafast-pool-*")
        assert private.stat().st_mode & 0o077 == 0
        (place,) = [one for one in private.iterdir() if one.is_socket()]
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(place)), base_url="http://localhost", timeout=60
        ) as client:
            for headers in ({}, {"x-api-key": "secret-root"}, {"x-llamafast-tenant": 'x {"tenant":{},"admin":true}'}):
                assert client.get("/v1/models", headers=headers).status_code == 401
                assert client.post("/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 401
        server.process.send_signal(signal.SIGHUP)
        assert server.client.get("/v1/models").status_code == 200
        (child,) = server.children()
        assert b"LLAMAFAST_API_KEY" not in Path(f"/proc/{child}/environ").read_bytes()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        until = time.monotonic() + 30
        while alive(child):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_the_end_comes_in_time_and_answers_that_it_cuts_say_so(folder: Path, other: dict[str, Any]) -> None:
    """Of a model too that has been told before to take its time."""
    long = other | {"load": "startup", "n_ctx": 131_072}
    models = [long, long | {"alias": "unloaded"}]
    with started(folder, {"models": models, "server": {"drain_seconds": 0.5}}) as server:
        body = {**ASK, "stream": True, "max_tokens": 100_000, "ignore_eos": True}
        lines: dict[str, list[str]] = {"other": [], "unloaded": []}

        def read(model: str) -> None:
            url, keys = f"{server.base_url}/v1/chat/completions", {"x-api-key": "secret-a"}
            with httpx.stream("POST", url, json=body | {"model": model}, headers=keys, timeout=30) as answer:
                lines[model].extend(answer.iter_lines())

        readers = [threading.Thread(target=read, args=(name,)) for name in lines]
        for reader in readers:
            reader.start()
        server.until(lambda: all(lines.values()))
        server.unload("unloaded")
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 0.5 + 15
        for reader in readers:
            reader.join()
        for events in lines.values():
            assert len(events) > 5
            assert '"code":"engine_unavailable"' in "".join(events[-3:])
        assert "Traceback" not in server.process.log
    assert list((folder / "tmp").iterdir()) == []
