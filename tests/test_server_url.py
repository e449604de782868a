"""Addresses and keys of servers, as each client of ours takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llamafast.batch.client import Client
from llamafast.bench.address import read_address
from llamafast.cli.conversation import Server
from llamafast.errors import ConfigError
from llamafast.server_url import read_url

CLIENTS = pytest.mark.parametrize("client", [Client, read_address, Server])


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000"),
        ("https://example.org/llm/v1", "https://example.org:443/llm"),
        ("http://user@example.org", "http://example.org:80"),
    ],
)
def test_an_address_may_have_the_path_of_the_api(url: str, root: str) -> None:
    assert read_url(url).root == root


@CLIENTS
@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://h", "http://", "http://h:port", "http://h:99999", "http://[::1", "http://h?x=1"],
)
def test_what_is_no_address_is_refused_before_anybody_is_asked(client: Callable[..., Any], url: str) -> None:
    with pytest.raises(ConfigError, match=r"^\S*: "):
        client(url)


@CLIENTS
@pytest.mark.parametrize("key", ["two\nlines", "ключ"])
def test_a_key_that_no_header_may_have_is_refused(client: Callable[..., Any], key: str) -> None:
    with pytest.raises(ConfigError, match="header"):
        client("http://127.0.0.1:8000", key)
