"""What parent and child tell each other beside requests, a line of JSON each, over a socket that nobody else has."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct


class Begin(Struct, tag=True):
    """The first line. ``config`` is a cfg.json of one model, ``secret`` what requests have to bring along,
    ``max_bytes`` the room of ``n_models`` models, of which this is one."""

    config: Raw
    secret: str
    verbose: bool
    max_bytes: int
    n_models: int


class Go(Struct, tag=True):
    """There is room for what the child needs."""


class End(Struct, tag=True):
    """What runs has so many seconds from now. SIGTERM comes after the first one, later ones may leave less."""

    seconds: float


class Needs(Struct, tag=True):
    """Host memory that the model will take, as far as its files tell, in bytes."""

    n_bytes: int


class Progress(Struct, tag=True):
    """The model is not there yet, but nearer. What is ``fetched`` next comes from a network, in time that is not the
    child's."""

    fetched: bool = False


class Ready(Struct, tag=True):
    """Requests are answered."""


class Refused(Struct, tag=True):
    """The model cannot be served, and why. The child ends."""

    reason: str


ToChild = Begin | Go | End
FromChild = Needs | Progress | Ready | Refused

to_child = msgspec.json.Decoder(ToChild)
from_child = msgspec.json.Decoder(FromChild)


def line(message: ToChild | FromChild) -> bytes:
    return msgspec.json.encode(message) + b"\n"
