"""Events of a real server: what clients asked and what restarts find, and what start-up says of keys."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import openai
import pytest
from msgspec import msgpack
from serve.conftest import model_config
from support.configs import config_in
from support.event_reader import EventReader, digests, received, replayed, subscribe
from support.server_process import PATIENT, Process

from llamafast.errors import ConfigError

TOLD = re.compile(r"events   (tcp://\S+), replays (tcp://\S+)")
ANYWHERE = {"endpoint": "tcp://127.0.0.1:*", "replay_endpoint": "tcp://127.0.0.1:*"}
PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 8


@pytest.fixture
def config(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, object]:
    return {
        **model_config(tiny_model("tiny-llama"), 0, alias="tiny"),
        "server": {"port": 0, "kv_events": ANYWHERE, "drain_seconds": 1},
        "disk_cache": {"path": str(tmp_path / "disk"), "max_bytes": 10**8, "min_tokens": 32},
    }


def ask(process: Process, prompt: str, key: str = "none", **fields: object) -> list[int]:
    """The ids of a prompt that was answered."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key=key, max_retries=0) as client:
        extra = {"return_token_ids": True, **fields}
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=4, extra_body=extra)
    return answer.choices[0].prompt_token_ids  # type: ignore[attr-defined, no-any-return]


def test_what_clients_asked_is_told_and_what_is_somebodys_is_not(config, tmp_path, context):
    reader = EventReader()
    with Process(tmp_path, config, program=PATIENT) as process:
        process.until_serving()
        events, replays = process.until_told(TOLD).groups()
        with closing(subscribe(context, events)) as socket:
            ids = ask(process, PROMPT)
            while not set(digests(ids)) <= reader.blocks("CPU") or reader.blocks("GPU"):
                reader.receive(received(socket))
            told = len(replayed(context, replays, 0))
            ask(process, f"private {PROMPT}", cache_salt="mine")
            later = [event for _, payload in replayed(context, replays, told) for event in msgpack.decode(payload)[1]]
            # what nobody has used again is written where there is time for it
            assert {event["medium"] for event in later} <= {"STORAGE"}
            ask(process, PROMPT + "what is used again is written")
            while not set(digests(ids)) <= reader.blocks("STORAGE"):
                reader.receive(received(socket))
        process.send_signal(signal.SIGTERM)
        process.ended(30)
        assert process.returncode == 0, process.log
    with Process(tmp_path, config, program=PATIENT) as process:
        process.until_serving()
        again = EventReader()
        with closing(subscribe(context, process.until_told(TOLD)[1])) as socket:
            while not set(digests(ids)) <= again.blocks("STORAGE"):
                again.receive(received(socket))
        assert not again.blocks("CPU")
        process.kill()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("one name=alice\n", True),
        ("one\ntwo\n", True),
        ("one\n", False),
    ],
)
def test_start_up_says_that_named_keys_tell_nothing(config, tmp_path, context, keys, says):
    file = tmp_path / "keys"
    file.write_text(keys)
    file.chmod(0o600)
    config["server"] |= {"api_key_file": str(file)}
    del config["disk_cache"]
    with Process(tmp_path, config) as process:
        process.until_serving()
        assert ("none of requests with a key" in process.log) == says
        ask(process, PROMPT, key="one")
        batches = replayed(context, process.until_told(TOLD)[2], 0)
        # the first one says that nothing is there
        assert (len(batches) == 1) == says
        process.kill()


def test_a_server_of_several_models_has_none(tmp_path):
    for models in (
        '"models": [{"path": "a.gguf", "alias": "a"}]',
        '"model": {"path": "a.gguf", "ttl_seconds": 5}',
    ):
        (tmp_path / "cfg.json").write_text(f'{{{models}, "server": {{"kv_events": {{}}}}}}')
        with pytest.raises(ConfigError, match=r"server\.kv_events: is for one model that stays"):
            config_in(tmp_path / "cfg.json")


@pytest.mark.heavy
def test_an_address_that_is_no_good_ends_the_start(config, tmp_path):
    config["server"] |= {"kv_events": {"endpoint": "tcp://8.8.8.8:5557"}}
    with Process(tmp_path, config) as process:
        process.ended(30)
        assert process.returncode == 1
        assert "public address 8.8.8.8" in process.log


@pytest.mark.heavy
def test_a_model_that_keeps_no_prompts_says_so(tiny_encoder, tmp_path):
    config = {
        "server": {"port": 0, "kv_events": ANYWHERE},
        "model": {"path": str(tiny_encoder("tiny-bert")), "alias": "tiny", "threads": 1},
    }
    with Process(tmp_path, config) as process:
        process.until_serving()
        assert "events   none: this model generates nothing" in process.log
        process.kill()
