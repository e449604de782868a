"""The thread that tells routers: over real sockets, on ports that the system chooses."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq
from support.event_reader import EventReader, digests, read_all, received, replayed, subscribe

from llamafast.config import KVEventsConfig
from llamafast.engine.kv_log import RAM, RUNNING
from llamafast.errors import ConfigError
from llamafast.events import address, publisher
from llamafast.events.address import endpoint_of
from llamafast.events.publisher import END, Publisher, Replay

ANYWHERE = "tcp://127.0.0.1:*"
PROMPT = array("i", range(1000, 1064))


@pytest.fixture
def publish() -> Iterator[Callable[..., Publisher]]:
    started: list[Publisher] = []

    def start(**config: object) -> Publisher:
        one = Publisher(KVEventsConfig(**{"endpoint": ANYWHERE, "replay_endpoint": ANYWHERE, **config}))
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.close()


def until(holds: Callable[[], bool], reader: EventReader, socket: zmq.Socket[bytes]) -> None:
    while not holds():
        reader.receive(received(socket))


def test_whoever_subscribes_is_told_all_there_is_and_what_comes(publish, context):
    events = publish()
    events.log.hold(RAM, "a", PROMPT, 0)
    reader = EventReader()
    with closing(subscribe(context, events.urls[0])) as socket:
        until(lambda: reader.blocks("CPU") == set(digests(PROMPT)), reader, socket)
        events.log.hold(RUNNING, "b", PROMPT[:20], 0)
        until(lambda: reader.blocks("GPU") == set(digests(PROMPT[:16])), reader, socket)
        events.log.drop(RAM, "a")
        until(lambda: not reader.blocks("CPU"), reader, socket)
    assert len(reader.gaps) <= 1  # before it came


def test_batches_that_were_missed_may_be_asked_for_from_any_number_on(publish, context):
    events = publish()
    with closing(subscribe(context, events.urls[0])) as socket:
        received(socket)
        for n in range(4):
            events.log.hold(RAM, n, PROMPT[: 16 * n + 16], 0)
            received(socket)
            if n % 2:
                events.log.drop(RAM, n - 1)
    events.log.hold(RUNNING, "last", PROMPT, 0)
    while len(all_of_them := replayed(context, events.urls[1], 0)) < 6 or b"GPU" not in all_of_them[-1][1]:
        time.sleep(0.01)
    assert [seq for seq, _ in all_of_them] == list(range(len(all_of_them)))
    for first in range(len(all_of_them) + 1):
        assert replayed(context, events.urls[1], first) == all_of_them[first:]
    assert replayed(context, events.urls[1], 2**64 - 1) == []
    reader = read_all(EventReader(), [payload for _, payload in all_of_them])
    assert reader.blocks("GPU") == set(digests(PROMPT))


def test_a_replay_in_other_words_is_refused_and_costs_nobody_else_anything(publish, context, caplog):
    events = publish()
    with context.socket(zmq.DEALER) as odd:
        odd.linger = 0
        odd.connect(events.urls[1])
        for frames in ([b"x"], [b"", b"short"], [b"", bytes(8), b"more"], [b"no", bytes(8)]):
            odd.send_multipart(frames)
        while len([one for one in caplog.records if "none of the protocol" in one.message]) < 4:
            time.sleep(0.01)
    assert replayed(context, events.urls[1], 0)


def test_a_new_server_at_the_same_address_is_followed(context, publish):
    """Its events begin anew, and nothing of the old one's stays known."""
    first = publish(replay_endpoint=None)
    url = first.urls[0]
    reader = EventReader()
    with closing(subscribe(context, url)) as socket:
        first.log.hold(RAM, "a", PROMPT, 0)
        until(lambda: bool(reader.blocks("CPU")), reader, socket)
        first.close()
        second = publish(endpoint=url, replay_endpoint=None)
        second.log.hold(RAM, "b", PROMPT[:32], 0)
        until(lambda: reader.blocks("CPU") == set(digests(PROMPT[:32])), reader, socket)


def test_what_goes_wrong_is_told_again_whole(publish, context, monkeypatch, caplog):
    events = publish()
    reader = EventReader()
    with closing(subscribe(context, events.urls[0])) as socket:
        received(socket)
        real = events._index.events
        monkeypatch.setattr(events._index, "events", lambda note: exec("raise MemoryError"))
        events.log.hold(RAM, "a", PROMPT, 0)
        while "some were not told" not in caplog.text:
            time.sleep(0.01)
        monkeypatch.setattr(events._index, "events", real)
        events.log.hold(RAM, "b", PROMPT, 0)
        until(lambda: reader.blocks("CPU") == set(digests(PROMPT)), reader, socket)


def test_a_batch_is_bounded_and_those_that_are_kept_are(publish, context, monkeypatch):
    monkeypatch.setattr(publisher, "BATCH_BLOCKS", 2)
    events = publish(buffer_steps=3)
    for n in range(6):
        events.log.hold(RAM, n, array("i", [n] * 32), 0)
    while len(batches := replayed(context, events.urls[1], 0)) < 3 or batches[-1][0] < 6:
        time.sleep(0.01)
    assert [seq for seq, _ in batches] == [4, 5, 6]
    monkeypatch.setattr(publisher, "BUFFER_BYTES", 100)
    kept = Replay(1000)
    for seq in range(10):
        kept.add(seq, bytes(30))
    assert [seq for seq, _ in kept.since(0)] == [7, 8, 9]
    kept.add(10, bytes(500))
    assert [seq for seq, _ in kept.since(0)] == [10]


def test_whoever_stops_reading_takes_no_more_than_so_much_memory(publish):
    events = publish(buffer_steps=10)
    blocks = array("i", range(2**20, 2**20 + 16 * publisher.BATCH_BLOCKS))
    events.log.hold(RAM, "a", blocks, 0)
    while not events._batches.since(1):
        time.sleep(0.01)
    largest = max(len(payload) for _, payload in events._batches.since(0))
    assert largest * events._events.getsockopt(zmq.SNDHWM) < 2**28


def test_one_replay_after_another_is_whole(publish, context, monkeypatch):
    monkeypatch.setattr(publisher, "INTERVAL_MS", 1)
    events = publish(buffer_steps=100)
    for n in range(200):
        events.log.hold(RAM, n, array("i", [n] * 16), 0)
        while events.log._notes:
            time.sleep(0.001)
    while len(events._batches.since(0)) < 100:
        time.sleep(0.01)
    with context.socket(zmq.DEALER) as asking:
        asking.linger = 0
        asking.connect(events.urls[1])
        for _ in range(5):
            asking.send_multipart([b"", bytes(8)])
            n = 0
            while asking.poll(30_000) and asking.recv_multipart()[1] != END:
                n += 1
            assert n == 100


def test_whoever_asks_without_end_holds_nobody_up(publish, context):
    events = publish()

    class Endless:
        n = 0

        def poll(self, _: int) -> int:
            self.n += 1
            assert self.n <= publisher.HEARD_AT_ONCE
            return 1

        def recv(self, _: int) -> bytes:
            return b"\x01"

        def recv_multipart(self, _: int) -> list[bytes]:
            self.n += 1
            assert self.n <= 1
            return [b"who", b"", bytes(8)]

        def send_multipart(self, *_: object) -> None:
            pass

    events.close()
    events._events = Endless()
    events._hear()
    events._replay(Endless())


def test_whoever_sends_more_than_the_protocol_has_is_disconnected(publish, context):
    events = publish()
    long = bytes(publisher.MAX_FRAME_BYTES + 1)
    for kind, url, frames in ((zmq.XSUB, events.urls[0], [b"\x01" + long]), (zmq.DEALER, events.urls[1], [b"", long])):
        with context.socket(kind) as odd, odd.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            odd.linger = 0
            odd.connect(url)
            odd.send_multipart(frames)
            assert monitor.poll(5000)
            odd.disable_monitor()
    assert replayed(context, events.urls[1], 0)


def test_topics_are_told(publish, context):
    events = publish(topic="kv@here@tiny")
    with closing(subscribe(context, events.urls[0], b"kv@")) as socket:
        assert received(socket)[0] == b"kv@here@tiny"


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """A /proc/net of a machine that has these addresses."""

    def write(*addresses: str) -> Path:
        lines = "".join(f"     |-- {ip}\n        /32 host LOCAL\n" for ip in addresses if ":" not in ip)
        (tmp_path / "fib_trie").write_text(f"Main:\n  +-- 0.0.0.0/0 3 0 5\n{lines}")
        six = "".join(f"{ip.replace(':', '')} 01 40 00 80 lo\n" for ip in addresses if ":" in ip)
        (tmp_path / "if_inet6").write_text(six)
        return tmp_path

    return write


KEY = "server.kv_events.endpoint"
PUBLIC6 = "2a00:1450:4001:0081:0000:0000:0000:200e"


def test_strangers_are_told_nothing(machine):
    inside = machine("127.0.0.1", "10.1.2.3", "fd00:0000:0000:0000:0000:0000:0000:0001")
    for url in (
        "tcp://*:5557",
        "tcp://0.0.0.0:5557",
        "tcp://[::]:5557",
        "tcp://127.0.0.1:0",
        "ipc:///tmp/x",
        "tcp://lo:1",
    ):
        assert endpoint_of(url, KEY, inside).binds, url
    assert endpoint_of("tcp://[::]:5557", KEY, inside).is_ipv6
    # another machine's: an indexer listens there
    assert not endpoint_of("tcp://10.255.0.9:5557", KEY, inside).binds
    for url in ("tcp://8.8.8.8:5557", "tcp://[2001:4860:4860::8888]:5557", "tcp://[::ffff:8.8.8.8]:5557"):
        with pytest.raises(ConfigError, match=rf"^{KEY}: .* public address "):
            endpoint_of(url, KEY, inside)
    outside = machine("127.0.0.1", "93.184.216.34", PUBLIC6)
    everywhere = ("*", "0.0.0.0", "[::]", "0", "0.0", "000.0.0.0", "[::0]", "[0::0]", "[::ffff:0.0.0.0]")
    for url in (f"tcp://{host}:5557" for host in everywhere):
        with pytest.raises(ConfigError, match="public address"):
            endpoint_of(url, KEY, outside)
    assert endpoint_of("tcp://127.0.0.1:5557", KEY, outside).binds
    with pytest.raises(ConfigError, match="addresses are not known"):
        endpoint_of("tcp://*:5557", KEY, outside / "nothing")


def test_a_real_machine_tells_its_addresses():
    assert "127.0.0.1" in list(address._addresses(address.PROC, with_ipv6=False))


@pytest.mark.parametrize(
    "url", ["", "5557", "tcp://127.0.0.1", "tcp://127.0.0.1:70000", "http://127.0.0.1:1", "ipc://", "tcp://no such:1"]
)
def test_what_is_no_endpoint_is_said(url):
    with pytest.raises(ConfigError, match=f"^{KEY}: "):
        endpoint_of(url, KEY)


def test_a_port_that_is_taken_and_an_interface_that_is_public_are_said(monkeypatch):
    with closing(Publisher(KVEventsConfig(endpoint=ANYWHERE))) as events:
        with pytest.raises(ConfigError, match="Address already in use"):
            Publisher(KVEventsConfig(endpoint=events.urls[0]))
        with pytest.raises(ConfigError, match=r"^server.kv_events.replay_endpoint: .*Address already in use"):
            Publisher(KVEventsConfig(endpoint=ANYWHERE, replay_endpoint=events.urls[0]))
    with pytest.raises(ConfigError, match="no address of this machine"):
        Publisher(KVEventsConfig(endpoint=ANYWHERE, replay_endpoint="tcp://10.255.0.9:5557"))
    seen: list[str] = []
    monkeypatch.setattr(publisher, "check_private", lambda ip, url, key: seen.append(ip))
    Publisher(KVEventsConfig(endpoint="tcp://lo:*")).close()
    assert seen == ["127.0.0.1"]


def test_nothing_is_said_of_a_quiet_end(publish, caplog):
    caplog.set_level(logging.INFO)
    one = publish()
    one.close()
    one.close()
    assert [record for record in caplog.records if record.name == publisher.logger.name] == []
