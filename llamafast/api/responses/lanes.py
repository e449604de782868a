"""One open WebSocket of /v1/responses: its requests follow one another in lanes, which remember what they said."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.body_size import BodyLimits
from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.fields import note
from llamafast.api.hidden_tools import named
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.events import Created, Event
from llamafast.api.responses.frames import FrameKind, ResponseCreate, Steer, SteerFailed, decode_frame
from llamafast.api.responses.intake import Incoming, Intake
from llamafast.api.responses.items import in_request
from llamafast.api.responses.responder import Responder
from llamafast.api.responses.socket import ROUTE, Whose
from llamafast.api.responses.store import History
from llamafast.api.sse import encode
from llamafast.api.websocket import WebSocket
from llamafast.config import ServerConfig
from llamafast.engine.types import ModelInfo
from llamafast.errors import InvalidRequest, LlamafastError, QueueFull, internal_error

log = logging.getLogger(__name__)

# As OpenAI's own limits: lanes of a socket, responses that run on it at once.
MAX_LANES = 32
MAX_RUNNING = 16
# Requests that wait in a socket's lanes for the ones before them.
MAX_WAITING = 64
MAX_STREAM_ID_CHARS = 64

_CLIENT_GONE_STATUS = 499
_DECODER = msgspec.json.Decoder(ResponseCreate)
_KIND = msgspec.json.Decoder(FrameKind)
_STEER = msgspec.json.Decoder(Steer)
_NO_STEERING = {
    "type": "invalid_request_error",
    "code": "steering_not_supported",
    "message": "a response that runs takes no more input here",
}


class Lane:
    """Requests with one ``stream_id``, answered one after the other by ``task``."""

    def __init__(self) -> None:
        self.waiting: deque[Incoming] = deque()
        self.task: asyncio.Task[None] | None = None


class LaneMemory:
    """What the newest response of each lane can be continued from, stored or not: at most ``max_bytes`` of JSON."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._latest: dict[str | None, tuple[str, History]] = {}

    def recall(self, response_id: str) -> History | None:
        return next((said for known, said in self._latest.values() if known == response_id), None)

    def keep(self, lane: str | None, response_id: str, said: History) -> None:
        """Also forgets the lanes that were silent for longest, until the rest is within bounds."""
        self._latest.pop(lane, None)
        self._latest[lane] = response_id, said
        n_bytes = sum(said.n_bytes for _, said in self._latest.values())
        for other, (_, said) in list(self._latest.items()):
            if n_bytes <= self._max_bytes:
                break
            n_bytes -= said.n_bytes
            del self._latest[other]

    def forget(self, response_id: str | None) -> None:
        """A response whose continuation failed is not to be continued on this socket."""
        self._latest = {lane: latest for lane, latest in self._latest.items() if latest[0] != response_id}


class Session:
    """Reads frames, answers them in their lanes and tells ``request_log`` of each. Frames have ``limits`` as bodies do,
    and what waits on a socket, or is remembered there, those of one body."""

    def __init__(
        self,
        socket: WebSocket,
        whose: Whose,
        responder: Responder,
        info: ModelInfo,
        request_log: RequestLog,
        *,
        limits: BodyLimits,
        config: ServerConfig,
    ) -> None:
        self._socket = socket
        self._responder = responder
        self._info = info
        self._request_log = request_log
        self._limits = limits
        self._intake = Intake(socket, whose, limits, request_log, config)
        self._memory = LaneMemory(limits.max_bytes)
        self._lanes: dict[str | None, Lane] = {}
        self._running = asyncio.Semaphore(MAX_RUNNING)

    def idle_seconds_left(self) -> float:
        answering = any(not task.done() for task in self._tasks())
        return self._intake.idle_seconds_left(answering)

    async def read(self) -> None:
        """Give frames to their lanes. Raises ClientGone or Refused."""
        await self._intake.read(self._take)

    async def _take(self, frame: Incoming) -> None:
        kind = decode_frame(_KIND, frame.data)
        frame.stream_id = kind.stream_id
        if kind.type == "response.steer":
            await self._refuse_steer(decode_frame(_STEER, frame.data), frame)
            frame.size.release()
        else:
            _check_kind(kind)
            self._enqueue(frame)

    async def finish(self) -> None:
        """Wait until every lane has answered what it took."""
        await asyncio.gather(*self._tasks())

    async def cancel(self) -> None:
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes.values():
            for frame in lane.waiting:
                frame.size.release()

    async def tell(self, error: LlamafastError) -> None:
        await self._intake.tell(error)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    async def _refuse_steer(self, steer: Steer, frame: Incoming) -> None:
        failed = SteerFailed(error=_NO_STEERING, steer=steer, stream_id=_lane(frame))
        await self._socket.send(encode(failed))

    def _enqueue(self, frame: Incoming) -> None:
        name = frame.stream_id
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                raise QueueFull(
                    f"a connection has at most {MAX_LANES} values of `stream_id`", code="websocket_stream_limit_reached"
                )
            lane = self._lanes[name] = Lane()
        waiting = [len(other.data) for every in self._lanes.values() for other in every.waiting]
        if len(waiting) >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} requests wait on this connection already")
        if waiting and sum(waiting) + len(frame.data) > self._limits.max_bytes:
            raise QueueFull(f"requests of {sum(waiting)} bytes wait on this connection already")
        lane.waiting.append(frame)
        if lane.task is None or lane.task.done():
            lane.task = asyncio.create_task(self._play(lane))

    async def _play(self, lane: Lane) -> None:
        while lane.waiting:
            async with self._running:
                frame = lane.waiting.popleft()
                try:
                    await self._respond(frame)
                except LlamafastError as error:
                    await self._fail(error, frame)
                except Exception:
                    log.exception("request %s failed", frame.record.identity.request_id.decode())
                    await self._fail(internal_error(), frame)
                finally:
                    self._intake.last = time.monotonic()
                    frame.size.release()
                    frame.record.left = not frame.record.status
                    frame.record.status = frame.record.status or _CLIENT_GONE_STATUS
                    self._request_log.add(frame.record, ROUTE)

    async def _fail(self, error: LlamafastError, frame: Incoming) -> None:
        frame.record.status, frame.record.error = error.status, error
        await self._intake.tell(error, frame.stream_id)

    async def _respond(self, frame: Incoming) -> None:
        size = len(frame.data)
        record, info = frame.record, self._info
        request = await run_sized(size, decode_request, _DECODER, frame.data, info, record, detach=in_request)
        try:
            planned = await self._responder.prepare(
                request,
                size,
                frame.record.tenant,
                recall=self._memory.recall,
                prefill=request.generate is False,
                stream_id=_lane(frame),
            )
            note(planned.plan.unread, frame.record)
            frame.record.response_id = planned.response.id
            generation = frame.record.follow(self._responder.submit(planned))
        except LlamafastError:
            self._memory.forget(request.previous_response_id)
            raise
        try:
            unread = [*record.ignored, *named(planned.hidden)]
            async for events in self._responder.stream(planned, generation, record):
                if unread and isinstance(events[0], Created):
                    events[0].llamafast_ignored = unread
                if planned.response.status == "failed":
                    self._memory.forget(request.previous_response_id)
                elif planned.response.status != "in_progress":
                    said = await run_sized(planned.n_bytes + planned.writer.n_bytes, planned.history)
                    self._memory.keep(frame.stream_id, planned.response.id, said)
                for text in await run_sized(planned.writer.telling_size(events), _encoded, events):
                    await self._socket.send(text)
            frame.record.status = 200
        finally:
            generation.cancel()


def _encoded(events: Sequence[Event]) -> list[bytes]:
    return [encode(event) for event in events]


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


def _lane(frame: Incoming) -> str | UnsetType:
    return UNSET if frame.stream_id is None else frame.stream_id
