"""Where a server listens: what is at a Unix socket's place before and after, and who can come to an address."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafast.api.keys import Keys
from llamafast.config import ServerConfig
from llamafast.errors import ConfigError
from llamafast.front import warn_of_strangers
from llamafast.listener import Address, Listener


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a b.sock"


@pytest.fixture
def bound(place: Path) -> Iterator[socket.socket]:
    """A socket that somebody has at ``place``."""
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(place))
        yield somebody


def listener(place: Path | str) -> Listener:
    return Listener(ServerConfig(uds=str(place)))


def test_a_free_place_is_left_free(place: Path) -> None:
    found = listener(place)
    assert found.options == {"uds": place}
    assert found.url == f"http+unix://{str(place).replace('/', '%2F').replace(' ', '%20')}/v1"
    assert not place.exists()


def test_a_relative_place_is_made_absolute(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    assert listener(place.name).options == {"uds": place}


def test_the_socket_of_a_dead_server_goes(place: Path, bound: socket.socket) -> None:
    bound.close()
    listener(place)
    assert not place.exists()


def test_the_socket_of_a_server_stays(place: Path, bound: socket.socket) -> None:
    bound.listen(1)
    for _ in range(4):  # more than may wait
        with pytest.raises(ConfigError, match=r"^server\.uds: a server listens on .*a b\.sock already"):
            listener(place)
    assert place.is_socket()


def test_what_is_no_socket_stays(place: Path) -> None:
    place.write_text("precious")
    with pytest.raises(ConfigError, match=r"^server\.uds: .*a b\.sock is there, and is no socket"):
        listener(place)
    assert place.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/x", "No such file or directory"), ("x" * 200, "too long"), ("a\0b", "null byte")],
)
def test_a_place_where_no_socket_can_be(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^server\.uds: cannot listen on {tmp_path}/.*{reason}"):
        listener(f"{tmp_path}/{name}")


def test_the_folder_of_a_place_is_told() -> None:
    with pytest.raises(ConfigError, match=rf"^server\.uds: cannot listen on {Path.cwd()}/none/x: No such file"):
        listener("none/x")


def test_it_removes_its_own_socket_only(place: Path) -> None:
    found = listener(place)
    with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as theirs:
        ours.bind(str(place))
        found.bound()
        place.unlink()
        theirs.bind(str(place))
        found.remove()
        assert place.is_socket()
    found.bound()
    found.remove()
    assert not place.exists()
    found.remove()


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0", "192.168.0.9"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Address:
    """Where servers listen that do not say."""
    found = Address("llm.example", request.param, 8000)
    monkeypatch.setattr("llamafast.listener.find_address", lambda host, port: found)
    return found


def test_an_address_that_others_reach_is_told_where_nobody_needs_a_key(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    public_ip = Listener(ServerConfig()).public_ip
    assert (public_ip is None) == address.is_loopback
    with caplog.at_level(logging.WARNING):
        warn_of_strangers(public_ip, Keys(variable="secret"))
        assert not caplog.records
        warn_of_strangers(public_ip, Keys())
    assert ("api_key_file" in caplog.text) == (not address.is_loopback)


def test_names_are_checked_on_loopback_addresses_unless_they_are_listed(address: Address) -> None:
    assert Listener(ServerConfig()).hosts == (("127.0.0.1",) if address.is_loopback else None)
    assert Listener(ServerConfig(host="llm.example")).hosts == (("llm.example",) if address.is_loopback else None)
    listed = Listener(ServerConfig(allowed_hosts=("other.example",))).hosts
    assert listed == (("127.0.0.1", "other.example") if address.is_loopback else ("other.example",))


def test_a_unix_socket_is_nobodys_address(place: Path) -> None:
    found = listener(place)
    assert (found.public_ip, found.hosts) == (None, None)
