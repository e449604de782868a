"""The thread that tells routers of blocks, over ZeroMQ, as vLLM's publisher does.

Batches are numbered from 0. Whoever has missed some asks for them again (``Replay``); whoever subscribes is told all
there is, so that an index is whole a moment after either side has started, without having heard of the beginning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

import zmq

from llamafast.config import KVEventsConfig
from llamafast.engine.kv_log import KVLog
from llamafast.errors import ConfigError
from llamafast.events.address import Endpoint, check_private, endpoint_of
from llamafast.events.blocks import BlockIndex
from llamafast.events.wire import AllBlocksCleared, Batch, Event, encode, n_blocks

logger = logging.getLogger(__name__)

INTERVAL_MS = 50
# A batch has no more blocks than that, but for those of its last event.
BATCH_BLOCKS = 1000
# Between two times that everything is told again, whoever subscribes meanwhile.
SNAPSHOT_SECONDS = 1.0
# Batches that wait for a slow subscriber, beyond which it misses some; those are what 50 s bring. vLLM's are 100,000:
# gigabytes, for somebody who has stopped reading.
HIGH_WATER = 1000
# Who subscribes between two times that is told what there is: whoever asks without end holds up nobody.
HEARD_AT_ONCE = 1000
# Of batches that may be asked for again.
BUFFER_BYTES = 64 * 2**20
# Of what others send, a subscription or what is asked for again: whoever sends a longer frame is disconnected. ZeroMQ's
# index of subscriptions takes some 30 bytes for each of theirs.
MAX_FRAME_BYTES = 1024
LINGER_MS = 200
END = b"\xff" * 8


class Replay:
    """The last batches, ``most`` of them and no more than BUFFER_BYTES."""

    def __init__(self, most: int) -> None:
        self._batches: deque[tuple[int, bytes]] = deque()
        self._most = most
        self._n_bytes = 0

    def add(self, seq: int, payload: bytes) -> None:
        self._batches.append((seq, payload))
        self._n_bytes += len(payload)
        while len(self._batches) > self._most or (self._n_bytes > BUFFER_BYTES and len(self._batches) > 1):
            self._n_bytes -= len(self._batches.popleft()[1])

    def since(self, seq: int) -> list[tuple[int, bytes]]:
        return [one for one in self._batches if one[0] >= seq]


class Publisher:
    """Tells what is noted in ``log`` until it is closed. ``urls`` are where: of events, then of replays if there are.

    Raises ConfigError where it cannot listen, or strangers could.
    """

    def __init__(self, config: KVEventsConfig) -> None:
        self.log = KVLog()
        self._index = BlockIndex()
        self._topic = config.topic.encode()
        self._batches = Replay(config.buffer_steps)
        self._most_replayed = config.buffer_steps
        self._seq = 0
        self._told_at = 0.0
        self._asked = False
        self._closing = False
        self._context = zmq.Context()
        try:
            # unlike PUB it hears who subscribes
            self._events = self._socket(zmq.XPUB, config.endpoint, "server.kv_events.endpoint")
            self._replays: zmq.Socket[bytes] | None = None
            if config.replay_endpoint is not None:
                self._replays = self._socket(zmq.ROUTER, config.replay_endpoint, "server.kv_events.replay_endpoint")
        except BaseException:
            self._context.destroy(linger=0)
            raise
        sockets = (self._events, self._replays)
        self.urls = [one.get_string(zmq.LAST_ENDPOINT) for one in sockets if one is not None]
        self._thread = threading.Thread(target=self._run, name="llamafast-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Tell what is noted by now, and end the thread."""
        self._closing = True
        if self._thread.ident is not None:
            self._thread.join()
        self._context.destroy(linger=LINGER_MS)

    def _socket(self, kind: int, url: str, key: str) -> zmq.Socket[bytes]:
        endpoint = endpoint_of(url, key)
        if kind == zmq.ROUTER and not endpoint.binds:
            raise ConfigError(f"{key}: {url} is no address of this machine: whoever wants a replay connects to it")
        one: zmq.Socket[bytes] = self._context.socket(kind)
        if kind == zmq.XPUB:
            one.setsockopt(zmq.XPUB_VERBOSE, 1)
        # a replay whole, while ZeroMQ does not know yet that the one before was read
        one.setsockopt(zmq.SNDHWM, HIGH_WATER if kind == zmq.XPUB else 2 * (self._most_replayed + 1))
        one.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        one.setsockopt(zmq.IPV6, int(endpoint.is_ipv6))
        try:
            if endpoint.binds:
                one.bind(url)
                _check_bound(one, endpoint, key)
            else:
                one.connect(url)
        except zmq.ZMQError as error:
            raise ConfigError(f"{key}: cannot use {url}: {error.strerror}") from error
        return one

    def _run(self) -> None:
        self._send([AllBlocksCleared()])
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        if self._replays is not None:
            poller.register(self._replays, zmq.POLLIN)
        while True:
            closing = self._closing
            try:
                ready = {one for one, _ in poller.poll(0 if closing else INTERVAL_MS)}
                if self._events in ready:
                    self._hear()
                self._tell_notes()
                if self._asked and time.monotonic() - self._told_at >= SNAPSHOT_SECONDS:
                    self._asked, self._told_at = False, time.monotonic()
                    self._tell(self._index.snapshot())
                if self._replays is not None and self._replays in ready:
                    self._replay(self._replays)
            except Exception:
                # whoever listens may know too much or too little now
                logger.exception("events   some were not told: all there is will be told again")
                self._asked = True
                time.sleep(INTERVAL_MS / 1000)
            if closing:
                return

    def _hear(self) -> None:
        """Who subscribes, or does not any more."""
        for _ in range(HEARD_AT_ONCE):
            if not self._events.poll(0):
                return
            self._asked |= self._events.recv(zmq.NOBLOCK).startswith(b"\x01")

    def _tell_notes(self) -> None:
        self._tell(event for note in self.log.taken() for event in self._index.events(note))

    def _tell(self, events: Iterable[Event]) -> None:
        """In batches."""
        batch: list[Event] = []
        n = 0
        for event in events:
            batch.append(event)
            n += n_blocks(event)
            if n >= BATCH_BLOCKS:
                self._send(batch)
                batch, n = [], 0
        if batch:
            self._send(batch)

    def _send(self, events: list[Event]) -> None:
        payload = encode(Batch(time.time(), events))
        self._batches.add(self._seq, payload)
        self._events.send_multipart([self._topic, self._seq.to_bytes(8, "big"), payload])
        self._seq += 1

    def _replay(self, replays: zmq.Socket[bytes]) -> None:
        """Answer who asks next: ``b"", first`` with ``b"", number, batch`` each, and an end."""
        who, *request = replays.recv_multipart(zmq.NOBLOCK)
        if len(request) != 2 or request[0] or len(request[1]) != 8:
            logger.warning("events   a replay was asked for in %d frames that are none of the protocol", len(request))
            return
        for seq, payload in self._batches.since(int.from_bytes(request[1], "big")):
            replays.send_multipart([who, b"", seq.to_bytes(8, "big"), payload], zmq.NOBLOCK)
        replays.send_multipart([who, b"", END, b""], zmq.NOBLOCK)


def _check_bound(one: zmq.Socket[bytes], endpoint: Endpoint, key: str) -> None:
    """An interface's address is known once it is bound. Raises ConfigError."""
    scheme, _, rest = one.get_string(zmq.LAST_ENDPOINT).partition("://")
    if scheme == "tcp":
        check_private(rest.rpartition(":")[0].strip("[]"), endpoint.url, key)
