"""One client's WebSocket, and behind it one to each model that its frames are for."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from contextlib import suppress

from msgspec import Struct, json
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import WebSocketException

from llamafast.api.body_size import BodyLimits
from llamafast.api.delivery import run_sized
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.frames import decode_frame
from llamafast.api.responses.intake import Incoming, Intake
from llamafast.api.responses.lanes import MAX_LANES, MAX_STREAM_ID_CHARS
from llamafast.api.responses.socket import Whose
from llamafast.api.websocket import WebSocket
from llamafast.config import ServerConfig
from llamafast.engine.types import Tenant
from llamafast.errors import EngineUnavailable, LlamafastError, ModelDied, QueueFull, internal_error
from llamafast.loop_sockets import is_scarcity
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.children import Door
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member
from llamafast.pool.passing import OUT_OF_CONNECTIONS
from llamafast.pool.tenants import HEADER, told

log = logging.getLogger(__name__)

CLOSE_SECONDS = 1.0
# Frames of a socket that wait for one model.
MAX_WAITING = 64
# What ends the answer to a frame, as our children write it.
_LAST = re.compile(rb'\{"type":"(?:response\.(?:completed|failed|incomplete|steer\.failed)|error)"')


class _Peek(Struct):
    """Whatever else a frame holds is for the model to judge."""

    model: str | None = None
    stream_id: str | None = None


_PEEK = json.Decoder(_Peek)


class _Line:
    """To one model: frames that wait for it, and those that it has not answered yet. While there are such the model
    stays; otherwise it may go, and the next frame brings it back."""

    def __init__(self, member: Member, session: PooledSession) -> None:
        self.member = member
        self.waiting: deque[Incoming] = deque()
        self.unanswered: dict[Incoming, ClientConnection | None] = {}  # and on which they are answered
        self._session = session
        self._door: Door | None = None
        self._tenant: Tenant | None = None  # whose the connection's frames are
        self._connection: ClientConnection | None = None
        self._freed = asyncio.Event()
        self._listening: dict[ClientConnection, asyncio.Task[None]] = {}
        self._sending: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.unanswered or self._sending)

    def put(self, frame: Incoming) -> None:
        """Raises QueueFull."""
        if len(self.waiting) >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} requests wait on this connection already")
        self.waiting.append(frame)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def close(self) -> None:
        tasks = [*self._listening.values(), *([self._sending] if self._sending is not None else ())]
        connections = list(self._listening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for frame in self.waiting:
            frame.size.release()
        for frame in list(self.unanswered):
            self._answered(frame)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(connection.close() for connection in connections))

    async def _send(self) -> None:
        while self.waiting:
            frame = self.waiting.popleft()
            try:
                await self._pass_on(frame)
            except LlamafastError as error:
                await self._session.intake.refuse(error, frame)
            except Exception:
                log.exception("request %s failed", frame.record.identity.request_id.decode())
                await self._session.intake.refuse(internal_error(), frame)
            finally:
                frame.size.release()
                frame.data = b""
        self._sending = None
        self._session.news.set()

    async def _pass_on(self, frame: Incoming) -> None:
        """Raises ModelDied, EngineUnavailable where no connection is to be had, or why the model is not to be had."""
        if frame.record.tenant != self._tenant:
            await self._until_answered()
            self._connection = None
        door = await self._session.fleet.enter(self.member)
        # before it is sent: the answer may be here sooner than the end of sending
        self.unanswered[frame] = None
        try:
            if door is not self._door or self._connection not in self._listening:
                await self._connect(door, frame)
            assert self._connection is not None
            self.unanswered[frame] = self._connection
            await self._connection.send(frame.data, text=True)
        except (OSError, WebSocketException) as error:
            if self._answered(frame):  # else the client has been told already
                if isinstance(error, OSError) and is_scarcity(error):
                    raise EngineUnavailable(OUT_OF_CONNECTIONS) from error
                raise _died() from error
        except BaseException:
            self._answered(frame)
            raise

    async def _until_answered(self) -> None:
        """Frames of another tenant are for another connection, which is opened when this one is not needed."""
        while self.unanswered:
            self._freed.clear()
            await self._freed.wait()
        if self._connection is not None:
            await self._connection.close()

    async def _connect(self, door: Door, frame: Incoming) -> None:
        """Raises OSError or WebSocketException."""
        identity, tenant = frame.record.identity, frame.record.tenant
        self._connection = await unix_connect(
            str(door.path),
            "ws://localhost/v1/responses",
            additional_headers={
                HEADER.decode(): told(tenant, False, door.secret, identity.peer).decode(),
                "x-request-id": identity.request_id.decode(),
                **({"traceparent": identity.traceparent.decode()} if identity.traceparent else {}),
                **({"tracestate": identity.tracestate.decode()} if identity.tracestate else {}),
            },
            max_size=None,
            compression=None,
            ping_interval=None,
            proxy=None,
        )
        self._door = door
        self._tenant = tenant
        self._listening[self._connection] = asyncio.create_task(self._listen(self._connection))

    async def _listen(self, connection: ClientConnection) -> None:
        """Its client may read so slowly that another connection to the model's next process is there before the end of
        this one has been seen."""
        try:
            with suppress(WebSocketException):  # whoever waits is told below
                async for message in connection:
                    data = message.encode() if isinstance(message, str) else message
                    if _LAST.match(data) and (ours := self._unanswered_on(connection)):
                        of_lane = (one for one in ours if one.stream_id == _PEEK.decode(data).stream_id)
                        self._answered(next(of_lane, ours[0]))
                    await self._session.pass_back(data)
        finally:
            del self._listening[connection]
        for frame in self._unanswered_on(connection):
            self._answered(frame)
            await self._session.intake.refuse(_died(), frame)

    def _unanswered_on(self, connection: ClientConnection) -> list[Incoming]:
        return [frame for frame, on in self.unanswered.items() if on is connection]

    def _answered(self, frame: Incoming) -> bool:
        """Whether it was not before."""
        if frame not in self.unanswered:
            return False
        del self.unanswered[frame]
        self._session.fleet.leave(self.member)
        self._freed.set()
        self._session.news.set()
        return True


class PooledSession:
    """Gives frames to models; what these answer goes back as it is."""

    def __init__(
        self,
        socket: WebSocket,
        whose: Whose,
        fleet: Fleet,
        catalogue: Catalogue,
        request_log: RequestLog,
        *,
        limits: BodyLimits,
        config: ServerConfig,
    ) -> None:
        self.fleet = fleet
        self.intake = Intake(socket, whose, limits, request_log, config)
        self._socket = socket
        self._catalogue = catalogue
        self._lines: dict[str, _Line] = {}
        # by the lanes' ids, the one that had the last frame at the end
        self._bound: dict[str | None, Member] = {}
        self.news = asyncio.Event()  # that something is done

    def idle_seconds_left(self) -> float:
        return self.intake.idle_seconds_left(answering=any(line.busy for line in self._lines.values()))

    async def read(self) -> None:
        await self.intake.read(self._take)

    async def _take(self, frame: Incoming) -> None:
        peek = await run_sized(len(frame.data), decode_frame, _PEEK, frame.data)
        frame.stream_id = peek.stream_id
        member = await self._member(peek)
        self._lines.setdefault(member.name, _Line(member, self)).put(frame)

    async def finish(self) -> None:
        while any(line.busy for line in self._lines.values()):
            self.news.clear()
            await self.news.wait()

    async def cancel(self) -> None:
        await asyncio.gather(*(line.close() for line in self._lines.values()))

    async def tell(self, error: LlamafastError) -> None:
        await self.intake.tell(error)

    async def pass_back(self, data: bytes) -> None:
        self.intake.last = time.monotonic()
        await self._socket.send(data)

    async def _member(self, peek: _Peek) -> Member:
        """The model that a frame names, or that the last one of its lane was for, or else the last one of all. Raises
        InvalidRequest or ModelNotFound."""
        lane = peek.stream_id and peek.stream_id[:MAX_STREAM_ID_CHARS]  # longer ones the model refuses
        if peek.model or not self._bound:
            member = await self._catalogue.find(peek.model)
        else:
            member = self._bound.get(lane) or next(reversed(self._bound.values()))
        self._bound.pop(lane, None)
        self._bound[lane] = member
        if len(self._bound) > MAX_LANES:
            del self._bound[next(iter(self._bound))]
        return member


def _died() -> ModelDied:
    return ModelDied("the process of this model ended while it answered")
