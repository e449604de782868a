"""/v1/responses over a WebSocket: responses follow one another in lanes, their events are bare JSON frames."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from llamafast.api.decode import decode_request
from llamafast.api.delivery import COMPILES, internal_error, run_sized
from llamafast.api.http import ClientGone, error_body
from llamafast.api.responder import Responder, Turn, input_items
from llamafast.api.response_store import Conversation, ResponseStore
from llamafast.api.schema.fragments import ErrorObject
from llamafast.api.schema.response_events import Event
from llamafast.api.schema.responses import ResponsesRequest
from llamafast.api.sse import encode
from llamafast.api.websocket import GOING_AWAY, TRY_AGAIN_LATER, Refused, WebSocket
from llamafast.engine.types import EnginePort
from llamafast.errors import InvalidRequest, LlamafastError, PreviousResponseNotFound, QueueFull

FrameT = TypeVar("FrameT")

log = logging.getLogger(__name__)

# As OpenAI's own limits: lanes of a socket, responses that run on it at once.
MAX_LANES = 32
MAX_RUNNING = 16
# Requests that wait in a socket's lanes for the ones before them.
MAX_WAITING = 64
MAX_STREAM_ID_CHARS = 64


class ResponseCreate(ResponsesRequest, kw_only=True):
    """A client's frame: the request of POST /v1/responses and what only a socket has. It always streams."""

    type: Literal["response.create"]
    generate: bool | None = None
    stream_id: str | None = None
    stream: bool | None = True


class FrameKind(Struct):
    type: str | None = None
    stream_id: str | None = None


class Steer(Struct):
    previous_response_id: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")


class SteerFailed(Struct, kw_only=True):
    """A response that runs takes no more input here."""

    type: Literal["response.steer.failed"] = "response.steer.failed"
    error: dict[str, str]
    steer: Steer
    stream_id: str | UnsetType = UNSET


class ErrorFrame(Struct, kw_only=True):
    """A request that was refused; the socket stays open."""

    type: Literal["error"] = "error"
    status: int
    error: ErrorObject
    stream_id: str | UnsetType = UNSET


_DECODER = msgspec.json.Decoder(ResponseCreate)
_KIND = msgspec.json.Decoder(FrameKind)
_STEER = msgspec.json.Decoder(Steer)
_NO_STEERING = {
    "type": "invalid_request_error",
    "code": "steering_not_supported",
    "message": "a response that runs takes no more input here",
}


class Lane:
    """Requests with one ``stream_id``, answered one after the other. ``latest`` is what the lane's newest response
    can be continued from, stored or not."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes, FrameKind]] = deque()
        self.task: asyncio.Task[None] | None = None
        self.latest: tuple[str, Conversation] | None = None


class ResponseSockets:
    """Serves sockets. ``max_sockets`` are open at once, each for at most ``max_seconds``; the conversations a socket
    remembers have at most ``max_history_bytes`` of JSON."""

    def __init__(
        self,
        engine: EnginePort,
        responder: Responder,
        store: ResponseStore,
        *,
        max_sockets: int,
        max_seconds: float,
        max_history_bytes: int,
    ) -> None:
        self.engine = engine
        self.responder = responder
        self.store = store
        self.max_history_bytes = max_history_bytes
        self._max_sockets = max_sockets
        self._max_seconds = max_seconds
        self._n_open = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Every socket closes once what runs on it is done; new ones are turned away."""
        self._draining.set()

    async def closed(self) -> None:
        """Until no socket is open."""
        await self._idle.wait()

    async def serve(self, socket: WebSocket) -> None:
        """Until one side closes. What a client leaves running is cancelled."""
        with suppress(ClientGone):
            await socket.accept()
            if self._draining.is_set():
                await socket.close(GOING_AWAY, "the server is shutting down")
            elif self._n_open >= self._max_sockets:
                await socket.close(TRY_AGAIN_LATER, "too many sockets are open")
            else:
                self._n_open += 1
                self._idle.clear()
                try:
                    await self._converse(socket)
                finally:
                    self._n_open -= 1
                    if not self._n_open:
                        self._idle.set()

    async def _converse(self, socket: WebSocket) -> None:
        session = Session(socket, self)
        reader = asyncio.create_task(session.read())
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait((reader, draining), timeout=self._max_seconds, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            reader.cancel()
            await asyncio.wait((reader,))
            if draining.done():
                await session.finish()
                await socket.close(GOING_AWAY, "the server is shutting down")
            else:
                await session.refuse(LifetimeReached(self._max_seconds), FrameKind())
                await socket.close(GOING_AWAY, "the connection is too old")
        except Refused as refused:
            await socket.close(refused.code, refused.reason)
        finally:
            reader.cancel()
            draining.cancel()
            await session.cancel()


class LifetimeReached(InvalidRequest):
    code = "websocket_connection_limit_reached"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a connection lasts at most {seconds:g} seconds; open a new one")


class Session:
    """One open socket: its lanes and what they remember."""

    def __init__(self, socket: WebSocket, sockets: ResponseSockets) -> None:
        self._socket = socket
        self._sockets = sockets
        self._lanes: dict[str | None, Lane] = {}
        self._running = asyncio.Semaphore(MAX_RUNNING)

    async def read(self) -> None:
        """Give frames to their lanes. Raises ClientGone or Refused."""
        while True:
            frame = await self._socket.receive()
            kind = FrameKind()
            try:
                kind = _decode(_KIND, frame)
                if kind.type == "response.steer":
                    await self._refuse_steer(_decode(_STEER, frame), kind)
                else:
                    _check_kind(kind)
                    self._enqueue(frame, kind)
            except LlamafastError as error:
                await self.refuse(error, kind)

    async def refuse(self, error: LlamafastError, kind: FrameKind) -> None:
        frame = ErrorFrame(status=error.status, error=error_body(error).error, stream_id=_stream_id(kind))
        await self._socket.send(encode(frame))

    async def _refuse_steer(self, steer: Steer, kind: FrameKind) -> None:
        await self._socket.send(encode(SteerFailed(error=_NO_STEERING, steer=steer, stream_id=_stream_id(kind))))

    async def finish(self) -> None:
        """Wait until every lane has answered what it took."""
        await asyncio.gather(*self._tasks())

    async def cancel(self) -> None:
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    def _enqueue(self, frame: bytes, kind: FrameKind) -> None:
        lane = self._lanes.get(kind.stream_id)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                raise QueueFull(
                    f"a connection has at most {MAX_LANES} values of `stream_id`", code="websocket_stream_limit_reached"
                )
            lane = self._lanes[kind.stream_id] = Lane()
        if sum(len(other.waiting) for other in self._lanes.values()) >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} requests wait on this connection already")
        lane.waiting.append((frame, kind))
        if lane.task is None or lane.task.done():
            lane.task = asyncio.create_task(self._play(lane))

    async def _play(self, lane: Lane) -> None:
        while lane.waiting:
            frame, kind = lane.waiting.popleft()
            async with self._running:
                try:
                    await self._respond(lane, frame)
                except LlamafastError as error:
                    await self.refuse(error, kind)
                except Exception:
                    log.exception("a response over a WebSocket failed")
                    await self.refuse(internal_error(), kind)

    async def _respond(self, lane: Lane, frame: bytes) -> None:
        sockets = self._sockets
        request = await run_sized(len(frame), decode_request, _DECODER, frame, sockets.engine.info)
        try:
            before = self._recall(request.previous_response_id)
            given = input_items(request, before.items, sockets.store.item)
            turn = await run_sized(
                COMPILES if request.compiles else len(frame) + before.n_bytes,
                sockets.responder.prepare,
                request,
                before.items,
                given,
                store=request.store is not False,
                prefill=request.generate is False,
                stream_id=UNSET if request.stream_id is None else request.stream_id,
            )
            await self._stream(lane, turn)
        except LlamafastError:
            self._forget(request.previous_response_id)
            raise

    async def _stream(self, lane: Lane, turn: Turn) -> None:
        generation = self._sockets.engine.submit(turn.plan.plan)
        try:
            async for events in self._sockets.responder.events(turn, generation):
                if turn.response.status != "in_progress":
                    self._keep(lane, turn)
                await self._send(events)
        except LlamafastError as error:
            self._forget(turn.response.previous_response_id)
            await self._send(turn.writer.failure(error))
        finally:
            generation.cancel()

    async def _send(self, events: Iterable[Event]) -> None:
        for event in events:
            await self._socket.send(encode(event))

    def _recall(self, response_id: str | None) -> Conversation:
        """What to go on from: what a lane remembers, or what was stored."""
        if response_id is None:
            return Conversation([], 0)
        for lane in self._lanes.values():
            if lane.latest is not None and lane.latest[0] == response_id:
                return lane.latest[1]
        conversation = self._sockets.store.conversation(response_id)
        if conversation is None:
            raise PreviousResponseNotFound(response_id)
        return conversation

    def _keep(self, lane: Lane, turn: Turn) -> None:
        if turn.response.store:
            self._sockets.store.put(turn.response, turn.before, turn.input)
        items = turn.conversation()
        lane.latest = turn.response.id, Conversation(items, len(encode(items)))
        remembered = [other for other in self._lanes.values() if other.latest is not None]
        n_bytes = sum(other.latest[1].n_bytes for other in remembered if other.latest is not None)
        for other in remembered:
            if n_bytes <= self._sockets.max_history_bytes:
                break
            if other.latest is not None:
                n_bytes -= other.latest[1].n_bytes
                other.latest = None

    def _forget(self, response_id: str | None) -> None:
        """A response whose continuation failed is not to be continued on this socket."""
        for lane in self._lanes.values():
            if lane.latest is not None and lane.latest[0] == response_id:
                lane.latest = None


def _decode(decoder: msgspec.json.Decoder[FrameT], frame: bytes) -> FrameT:
    """Raises InvalidRequest when ``frame`` is not JSON or not of that shape."""
    try:
        return decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the frame: {error}", code="invalid_request_error") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the frame is not valid JSON: {error}", code="invalid_json") from error


def _check_kind(kind: FrameKind) -> None:
    """Raises InvalidRequest when a frame is not a request for a response."""
    if kind.stream_id is not None and not 1 <= len(kind.stream_id) <= MAX_STREAM_ID_CHARS:
        raise InvalidRequest(
            f"`stream_id` has 1 to {MAX_STREAM_ID_CHARS} characters", param="stream_id", code="invalid_stream_id"
        )
    if kind.type != "response.create":
        raise InvalidRequest(
            f"there is no event {str(kind.type)[:64]!r}; send `response.create`",
            param="type",
            code="unknown_event_type",
        )


def _stream_id(kind: FrameKind) -> str | UnsetType:
    return UNSET if kind.stream_id is None else kind.stream_id
