"""POST /v1/audio/transcriptions and /v1/audio/translations, from the form to the reply: cut, heard, told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llamafast.api.decode import decode_tree
from llamafast.api.delivery import rows_size, run_sized
from llamafast.api.form import FILE, Form, read_form
from llamafast.api.http import Exchange
from llamafast.api.sse import EventStream, encode
from llamafast.api.transcription.frames import TranscriptFrames
from llamafast.api.transcription.hearing import Hearing, Planned
from llamafast.api.transcription.schema import LISTS, Transcription, TranscriptionRequest
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.prompt.media import takes
from llamafast.chat.transcription import Speech, speech_messages, words_of
from llamafast.engine.media import MediaLoader, MediaSource, Medium
from llamafast.engine.types import EnginePort
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Longer sound is cut: encoders of speech see half a minute, and models were trained with no more.
PIECE_SECONDS = 30.0
_DECODER = msgspec.json.Decoder(TranscriptionRequest)
_TEXT_TYPE = b"text/plain; charset=utf-8"


class TranscriptionEndpoint:
    """``translates``: into English. ``media`` is where sound comes from, None for a model that takes text alone."""

    def __init__(
        self,
        engine: EnginePort,
        chat: ChatFormat,
        ping_seconds: float,
        media: MediaLoader | None,
        *,
        translates: bool = False,
    ) -> None:
        self._engine = engine
        self._chat = chat
        self._ping_seconds = ping_seconds
        self._media = media
        self._translates = translates

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        info, media = self._engine.info, self._media
        if media is None or "audio" not in info.modalities:
            raise UnsupportedParameter(f"the model {info.id!r} hears nothing: {takes(info.modalities)}", param="model")
        form = await run_sized(len(body), read_form, body, exchange.headers.get(b"content-type", b""), LISTS)
        if exchange.contents is not None:
            exchange.contents.asked(encode(form.fields))
        request, speech = self._decoded(form, exchange)
        planned = self._planned(request, speech, media, exchange.tenant.salt)
        if form.file is None:
            raise InvalidRequest("`file` is required", param=FILE)
        pieces = await media.cut(MediaSource(kind="audio", path=FILE, data=form.file), PIECE_SECONDS)
        # what the pieces hold is counted by itself from here on: an answer may take as long as its sound
        del body, form
        exchange.release()
        hearing = Hearing(pieces, planned, self._engine, exchange.tenant, exchange.heard)
        del pieces
        try:
            await hearing.submit()
            exchange.count(hearing)
            if request.stream:
                await self._stream(exchange, hearing)
                return
            async for _ in hearing.texts():
                pass
            if request.response_format == "text":
                await exchange.reply(200, f"{hearing.text}\n".encode(), _TEXT_TYPE)
            else:
                await exchange.reply_json(Transcription(hearing.text, hearing.usage()))
        finally:
            await hearing.close()

    async def _stream(self, exchange: Exchange, hearing: Hearing) -> None:
        # what is wrong with the sound is mostly known before the first token: time enough to say so in the status
        await hearing.begin(self._ping_seconds)
        frames = TranscriptFrames()
        async with EventStream(exchange, self._ping_seconds) as stream:
            async for text in hearing.texts():
                await stream.write(frames.delta(text))
            await stream.end(frames.done(hearing.text, hearing.usage()))

    def _decoded(self, form: Form, exchange: Exchange) -> tuple[TranscriptionRequest, Speech]:
        request = decode_tree(_DECODER, form.fields, self._engine.info, exchange, from_form=True)
        request.check()
        return request, request.speech(translated=self._translates)

    def _planned(self, request: TranscriptionRequest, speech: Speech, media: MediaLoader, salt: str) -> Planned:
        """What loads a piece of the request's sound, and plans what is asked about it. Raises UnsupportedParameter."""
        engine, chat = self._engine, self._chat
        word = chat.media_parts(engine.info.modalities).add(MediaSource(kind="audio", path=FILE))
        messages = speech_messages(word, speech, words_of(media.projectors, engine.tokenizer))

        def plan(sources: Sequence[MediaSource], loaded: Sequence[Medium]) -> ChatPlan:
            return plan_chat(request.task(messages, loaded, sources), chat, engine.tokenizer, engine.info)

        async def planned(piece: MediaSource) -> ChatPlan:
            loaded = await media.load([piece], salt)
            return await run_sized(rows_size(loaded), plan, [piece], loaded)

        return planned
