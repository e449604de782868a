"""Transcriptions and translations on the wire, over an engine without a model and a loader without a projector."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.fake_engine import INFO, FakeEngine, play, say
from support.forms import CONTENT_TYPE, Field, form

from llamafast.api.keys import Keys
from llamafast.api.spans import Span
from llamafast.api.transcription.endpoint import PIECE_SECONDS
from llamafast.config.server import RequestLogConfig
from llamafast.engine.media import MediaRows, MediaSource, Medium
from llamafast.engine.types import Event, Plan
from llamafast.errors import EngineFailure, InvalidMedia, QueueFull

PATH, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
N_ROWS = 6
HEARS = msgspec.structs.replace(INFO, modalities=("image", "audio"))
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "<assistant>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


class FakeLoader:
    """Sound is cut at its bars; ``loaded`` are the pieces that were wanted. ``fault`` is raised for all of it."""

    def __init__(self, projectors: tuple[str, ...] = ("ultravox",)) -> None:
        self.projectors = projectors
        self.loaded: list[tuple[bytes, str]] = []
        self.cuts: list[float] = []
        self.fault: Exception | None = None

    async def cut(self, sound: MediaSource, most_seconds: float) -> list[MediaSource]:
        await asyncio.sleep(0)
        self.cuts.append(most_seconds)
        if self.fault is not None:
            raise self.fault
        pieces = bytes(sound.data).split(b"|")
        return [msgspec.structs.replace(sound, data=piece) for piece in pieces]

    async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
        await asyncio.sleep(0)
        self.loaded += [(source.data, salt) for source in sources]
        rows = MediaRows(N_ROWS, N_ROWS, True)
        return [
            Medium(kind="audio", digest=sha256(source.data).digest(), chunks=(rows,), source=None, path=source.path)
            for source in sources
        ]


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(say("Hello", " there. "), info=HEARS)


@pytest.fixture
def client(engine: FakeEngine, loader: FakeLoader) -> AsgiClient:
    return AsgiClient(make_app(engine, media=loader))


async def ask(
    client: AsgiClient, *fields: Field, path: str = PATH, sound: bytes = b"sound", **headers: str
) -> Response:
    body = form([*fields, ("file", sound)])
    return await client.post(path, body, **{"content_type": CONTENT_TYPE, **headers})


def prompt(plan: Plan) -> str:
    return bytes(token for token in plan.prompts[0] if 0 <= token < 256).decode()


async def test_a_transcript_with_usage(client: AsgiClient, engine: FakeEngine, loader: FakeLoader) -> None:
    response = await ask(client, ("model", INFO.id))
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    n_input = len(engine.plan.prompts[0])
    assert response.json == {
        "text": "Hello there.",
        "usage": {
            "type": "tokens",
            "input_tokens": n_input,
            "output_tokens": 3,
            "total_tokens": n_input + 3,
            "input_token_details": {"audio_tokens": N_ROWS, "text_tokens": n_input - N_ROWS},
        },
    }
    assert loader.cuts == [PIECE_SECONDS]
    assert loader.loaded == [(b"sound", "")]
    plan = engine.plan
    assert (plan.sampling.temperature, plan.max_tokens, len(plan.media)) == (0, 512, 1)
    assert "word for word" in prompt(plan)


async def test_plain_text(client: AsgiClient) -> None:
    response = await ask(client, ("response_format", "text"))
    assert (response.headers["content-type"], response.body) == ("text/plain; charset=utf-8", b"Hello there.\n")


async def test_a_stream_tells_deltas_and_then_all_of_it(client: AsgiClient) -> None:
    whole = (await ask(client)).json
    *deltas, done = (await ask(client, ("stream", "true"))).events
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * len(deltas)
    assert "".join(event["delta"] for event in deltas) == "Hello there."
    assert done == {"type": "transcript.text.done", **whole}


async def test_what_is_said_about_the_sound_is_asked(client: AsgiClient, engine: FakeEngine) -> None:
    fields = [("language", "de"), ("prompt", "Frau Zoë"), ("keywords[]", "GGUF"), ("temperature", "0.4"), ("seed", "7")]
    limits = [("max_completion_tokens", "9"), ("max_tokens", "9")]
    assert (await ask(client, *fields, *limits)).status == 200
    plan = engine.plan
    assert (plan.sampling.temperature, plan.sampling.seed, plan.max_tokens) == (0.4, 7, 9)
    assert all(words in prompt(plan) for words in ("in German", "Frau Zoë", "GGUF"))


async def test_two_limits_are_told(client: AsgiClient) -> None:
    error = (await ask(client, ("max_completion_tokens", "9"), ("max_tokens", "8"))).error
    assert error["message"] == "`max_completion_tokens` says something else than `max_tokens`"


async def test_translations_ask_for_english(client: AsgiClient, engine: FakeEngine) -> None:
    response = await ask(client, ("languages", "de"), ("languages", "pl"), path=TRANSLATIONS)
    assert response.json["text"] == "Hello there."
    assert "from German or Polish into English" in prompt(engine.plan)


async def test_control_tokens_of_a_client_stay_text(client: AsgiClient, engine: FakeEngine) -> None:
    assert (await ask(client, ("prompt", "a</s>b"))).status == 200
    assert "a</s>b" in prompt(engine.plan)


@pytest.mark.parametrize(
    ("dialect", "begin", "end"), [("hermes", "<think>", "</think>"), ("gemma-4", "<|channel>thought", "<channel|>")]
)
async def test_only_content_counts_and_nothing_is_thought(dialect: str, begin: str, end: str) -> None:
    """llama-server's transcripts of Gemma 4 had its thoughts (ggml-org/llama.cpp#21863)."""
    info = msgspec.structs.replace(HEARS, chat_template=TEMPLATE)
    engine = FakeEngine(say(begin, "\na voice", end, "Hello"), info=info)
    client = AsgiClient(make_app(engine, media=FakeLoader(), model={"dialect": dialect}))
    response = await ask(client)
    assert engine.plan.budget is not None
    assert engine.plan.budget.n_tokens == 0
    assert response.json["text"] == "Hello"
    assert prompt(engine.plan).endswith("<assistant><think></think>")
    assert "x-llamafast-ignored" not in response.headers


async def test_pieces_are_heard_in_their_order_and_are_one_text(loader: FakeLoader) -> None:
    def script(plan: Plan) -> Sequence[Any]:
        n = len(engine.generations)
        return [[Event(0, f" {n}a", 1)], [Event(0, "b \n", 1)], [Event(0, "", 1, "stop")]]

    engine = FakeEngine(script, info=HEARS)
    client = AsgiClient(make_app(engine, media=loader))
    response = await ask(client, sound=b"one|two|three")
    assert response.json["text"] == "0ab 1ab 2ab"
    assert [piece for piece, _ in loader.loaded] == [b"one", b"two", b"three"]
    n_input = sum(len(generation.plan.prompts[0]) for generation in engine.generations)
    assert response.json["usage"]["input_tokens"] == n_input
    assert response.json["usage"]["input_token_details"]["audio_tokens"] == 3 * N_ROWS
    assert response.json["usage"]["output_tokens"] == 9
    engine.generations.clear()
    streamed = (await ask(client, ("stream", "true"), sound=b"one|two|three")).events
    assert "".join(event.get("delta", "") for event in streamed) == streamed[-1]["text"] == "0ab 1ab 2ab"


async def test_one_piece_is_ahead_and_no_more(loader: FakeLoader) -> None:
    hold = asyncio.Event()
    engine = FakeEngine(play(hold, [Event(0, "a", 1, "stop")]), info=HEARS)
    client = AsgiClient(make_app(engine, media=loader))
    body = form([("file", b"one|two|three|four")])
    async with client.open("POST", PATH, [body], {"content-type": CONTENT_TYPE}) as connection:
        async with asyncio.timeout(30):
            while len(engine.generations) < 2:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.generations) == len(loader.loaded) == 2
        hold.set()
        await asyncio.wait_for(connection.task, 30)
    assert connection.response.json["text"] == "a a a a"


async def test_a_client_that_leaves_is_not_heard_for(loader: FakeLoader) -> None:
    engine = FakeEngine(play([Event(0, "a", 1)], asyncio.Event()), info=HEARS)
    client = AsgiClient(make_app(engine, media=loader))
    body = form([("stream", "true"), ("file", b"one|two|three")])
    async with client.open("POST", PATH, [body], {"content-type": CONTENT_TYPE}) as connection:
        await connection.until_writes(1)
        async with asyncio.timeout(30):
            while len(engine.generations) < 2:
                await asyncio.sleep(0)
    assert [generation.cancelled for generation in engine.generations] == [True, True]


async def test_a_piece_that_is_slow_to_end_keeps_no_other_from_ending() -> None:
    class SlowLoader(FakeLoader):
        async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
            if self.loaded:
                try:
                    slow.set()
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.05)
            return await super().load(sources, salt)

    slow = asyncio.Event()
    engine = FakeEngine(play([Event(0, "a", 1)], asyncio.Event()), info=HEARS)
    client = AsgiClient(make_app(engine, media=SlowLoader()))
    body = form([("stream", "true"), ("file", b"one|two")])
    with suppress(asyncio.CancelledError):
        async with client.open("POST", PATH, [body], {"content-type": CONTENT_TYPE}) as connection:
            await asyncio.wait_for(slow.wait(), 30)
            # a reader that has stopped is given up, and then its connection ends
            for _ in range(2):
                connection.task.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
    assert [generation.cancelled for generation in engine.generations] == [True]


async def test_a_piece_that_fails_ends_it_and_the_others(loader: FakeLoader) -> None:
    def script(plan: Plan) -> Sequence[Any]:
        return [[Event(0, "a", 1, "stop")]] if not engine.generations else [EngineFailure("the projector failed")]

    engine = FakeEngine(script, info=HEARS)
    client = AsgiClient(make_app(engine, media=loader))
    response = await ask(client, sound=b"one|two|three")
    assert (response.status, response.error["message"]) == (500, "the projector failed")
    engine.generations.clear()
    response = await ask(client, ("stream", "true"), sound=b"one|two|three")
    assert response.status == 200
    first, last = (json.loads(frame.removeprefix("data: ")) for frame in response.frames)
    assert (first["delta"], last["error"]["message"]) == ("a", "the projector failed")


async def test_a_full_queue_refuses_the_first_piece_and_holds_up_the_others(loader: FakeLoader) -> None:
    engine = FakeEngine(say("a"), info=HEARS)
    engine.retry_seconds = 0.001
    submit, refusals = engine.submit, [False, True, True, False, True, False]

    def sometimes(*arguments: Any) -> Any:
        if refusals and refusals.pop(0):
            raise QueueFull("too many")
        return submit(*arguments)

    engine.submit = sometimes  # type: ignore[method-assign]
    client = AsgiClient(make_app(engine, media=loader))
    assert (await ask(client, sound=b"one|two|three")).json["text"] == "a a a"
    refusals[:] = [True]
    for stream in ("true", "false"):
        refusals[:] = [True]
        response = await ask(client, ("stream", stream), sound=b"one|two")
        assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")
        assert "retry-after" in response.headers


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_sound_that_cannot_be_read_is_a_400_that_names_the_file(
    client: AsgiClient, loader: FakeLoader, stream: str
) -> None:
    loader.fault = InvalidMedia("the audio cannot be read", param="file")
    response = await ask(client, ("stream", stream))
    assert response.status == 400
    assert response.error == {
        "message": "the audio cannot be read",
        "type": "invalid_request_error",
        "param": "file",
        "code": "invalid_media",
    }


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ([("response_format", "srt")], "response_format", "no time stamps are told here; send `response_format` json"),
        ([("response_format", "vtt")], "response_format", "no time stamps"),
        ([("response_format", "verbose_json")], "response_format", "no time stamps"),
        ([("response_format", "diarized_json")], "response_format", "speakers are not told apart"),
        ([("response_format", "xml")], "response_format", "`response_format`: invalid enum value"),
        ([("timestamp_granularities[]", "word")], "timestamp_granularities", "no time stamps"),
        ([("include[]", "logprobs")], "include", "not supported yet"),
        ([("known_speaker_names[]", "Ada")], "known_speaker_names", "speakers are not told apart"),
        ([("chunking_strategy[type]", "server_vad")], "chunking_strategy", "cut where it is quiet"),
        ([("chunking_strategy", '{"type": "server_vad"}')], "chunking_strategy", "cut where it is quiet"),
        ([("language", "klingon")], "language", "no code of a language"),
        ([("language", "en"), ("languages[]", "de")], "languages", "send one of"),
        ([("temperature", "hot")], "temperature", "expected `number"),
        ([("temperature", "3")], "temperature", "<= 2.0"),
        ([("temperature", "nan")], "temperature", ">= 0.0"),
        ([("stream", "perhaps")], "stream", "expected `boolean"),
        ([("prompt", "x" * 8193)], "prompt", "8192"),
        ([("keywords[]", "x")] * 101, "keywords", "100"),
        ([("model", "another")], "model", "does not exist"),
        ([("langage", "en")], "langage", "did you mean `language`"),
        ([("prompt[a]", "x")], "prompt", "expected `string"),
        ([("messages", "x")], "messages", "no field of this endpoint"),
        ([("model", "a"), ("model", "b")], "model", "occurs twice"),
    ],
)  # fmt: skip
async def test_what_is_not_served_is_told(
    client: AsgiClient, engine: FakeEngine, loader: FakeLoader, fields: list[Field], param: str, sentence: str
) -> None:
    response = await ask(client, *fields)
    assert response.status in (400, 404)
    assert response.error["param"] == param
    assert sentence in response.error["message"]
    assert engine.generations == [] == loader.cuts


@pytest.mark.parametrize(
    "fields", [[("chunking_strategy", "auto")], [("response_format", "json")], [("stream", "False")], [("user", "me")]]
)
async def test_what_asks_for_nothing_else_is_taken(client: AsgiClient, fields: list[Field]) -> None:
    assert (await ask(client, *fields)).json["text"] == "Hello there."


async def test_fields_that_nothing_reads_are_told(client: AsgiClient) -> None:
    assert (await ask(client, ("loudness", "7"))).headers["x-llamafast-ignored"] == "loudness"


@pytest.mark.parametrize("path", [PATH, TRANSLATIONS])
@pytest.mark.parametrize(
    ("modalities", "sentence"),
    [((), "takes text only: model.mtmd is not configured"), (("image", "video"), "image and video")],
)
async def test_a_model_that_hears_nothing_says_so(path: str, modalities: Any, sentence: str) -> None:
    engine = FakeEngine(info=msgspec.structs.replace(INFO, modalities=modalities))
    response = await ask(AsgiClient(make_app(engine, media=FakeLoader() if modalities else None)), path=path)
    assert (response.status, response.error["param"]) == (400, "model")
    assert f"the model {INFO.id!r} hears nothing" in response.error["message"]
    assert sentence in response.error["message"]


async def test_bodies_that_are_no_forms(client: AsgiClient, loader: FakeLoader) -> None:
    for body, kind, status, sentence in (
        (b"{}", "application/json", 415, "send `content-type: multipart/form-data`"),
        (b"{}", CONTENT_TYPE, 400, "not well formed"),
        (form([("model", INFO.id)]), CONTENT_TYPE, 400, "`file` is required"),
        (form([("file", b"a")])[:-6], CONTENT_TYPE, 400, "cut off"),
        (form([("file", b"a")]), "multipart/form-data", 400, "no boundary"),
    ):
        response = await client.post(PATH, body, content_type=kind)
        assert response.status == status
        assert sentence in response.error["message"]
    response = await ask(client, content_encoding="gzip")
    assert response.status == 415
    assert loader.cuts == []


async def test_a_form_counts_while_it_comes(engine: FakeEngine, loader: FakeLoader) -> None:
    app = make_app(engine, media=loader, max_body_bytes=1000)
    client = AsgiClient(app)
    piece = form([("file", b"x" * 900)])
    response = await client.post(PATH, [piece, piece], content_type=CONTENT_TYPE)
    assert (response.status, response.error["code"]) == (413, "body_too_large")
    response = await ask(client, content_length="1001")
    assert response.status == 413
    # JSON would be too much with a hundredth of these
    assert (await ask(AsgiClient(make_app(engine, media=loader)), sound=b",[{:" * 2_000_000)).status == 200
    assert app._limits.held == 0


async def test_the_body_counts_no_longer_than_until_it_is_cut(loader: FakeLoader) -> None:
    hold = asyncio.Event()
    engine = FakeEngine(play(hold, [Event(0, "a", 1, "stop")]), info=HEARS)
    app = make_app(engine, media=loader)
    body = form([("file", b"x" * 100_000)])
    async with AsgiClient(app).open("POST", PATH, [body], {"content-type": CONTENT_TYPE}) as connection:
        await asyncio.wait_for(engine.submitted.wait(), 30)
        assert app._limits.held == 0
        hold.set()
        await asyncio.wait_for(connection.task, 30)
    assert connection.response.status == 200


async def test_a_log_with_contents_has_what_was_said_and_no_sound(
    engine: FakeEngine, loader: FakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    client = AsgiClient(make_app(engine, media=loader, request_log=RequestLogConfig(content=True)))
    with caplog.at_level(logging.INFO, "llamafast.requests"):
        await ask(client, ("prompt", "Ada L"), sound=b"one|two")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "llamafast.requests"]
    assert "Ada L" in line
    assert "Hello there. Hello there. " in line
    assert "one|two" not in line


async def test_keys_tenants_ids_and_the_log(
    engine: FakeEngine, loader: FakeLoader, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("secret-a name=anna\nsecret-b name=ben\n")
    keys = Keys(file)
    keys.load()
    client = AsgiClient(make_app(engine, media=loader, keys=keys, request_log=True))
    assert (await ask(client)).status == 401
    with caplog.at_level(logging.INFO, "llamafast.requests"):
        response = await ask(
            client, ("model", INFO.id), sound=b"one|two", x_request_id="mine", authorization="Bearer secret-b"
        )
    assert {generation.tenant.name for generation in engine.generations} == {"ben"}
    assert {salt for _, salt in loader.loaded} == {engine.generations[0].tenant.salt} != {""}
    assert response.headers["x-request-id"] == "mine"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "llamafast.requests"]
    n_input = sum(generation.prompt_tokens for generation in engine.generations)
    assert f"id=mine route={PATH} status=200 key=ben model={INFO.id} stream=false prompt={n_input} cached=0 " in line
    assert "completion=6 " in line
    assert "finish=stop" in line


async def test_a_span_has_the_counts_of_all_pieces(engine: FakeEngine, loader: FakeLoader) -> None:
    class Sink(list[Span]):
        def add(self, span: Span) -> None:
            self.append(span)

    spans = Sink()
    reply = await ask(AsgiClient(make_app(engine, media=loader, spans=spans)), ("prompt", "SECRET"))
    assert reply.status == 200
    (span,) = spans
    assert span.name == f"transcription {engine.info.id}"
    told = span.attributes
    assert told["gen_ai.usage.input_tokens"] == sum(one.prompt_tokens for one in engine.generations)
    assert told["gen_ai.usage.output_tokens"] == sum(one.completion_tokens for one in engine.generations)
    assert "SECRET" not in repr(span)
