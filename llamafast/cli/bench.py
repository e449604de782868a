"""``llamafast bench URL``: what a server that runs gives so many clients."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import randrange
from typing import TYPE_CHECKING, Any

from llamafast.cli.given import key_of
from llamafast.config import KEY_VARIABLE
from llamafast.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SECONDS = 30.0


def add(commands: Commands) -> None:
    text = "measure a server that runs: tokens per second, time to the first token, gaps between tokens"
    command = commands.add_parser("bench", help=text, description=text)
    say = command.add_argument
    say("url", help="such as http://127.0.0.1:8000; any server with OpenAI's API")
    say("--model", help="a name of /v1/models; default: the first")
    say("--api-key", help=f"default: the variable {KEY_VARIABLE}")
    say("--api", choices=["chat", "completions"], default="chat", help="what is asked; default: chat")
    say("--clients", type=_count, default=8, help="how many ask at once, one request after another; default: 8")
    say("--rate", type=_positive, help="in place of clients: requests a second, which come at random times")
    say("--requests", type=_count, help="how many in all; default: as many as --duration has time for")
    say("--duration", type=_positive, help="seconds in which requests are sent; default: 30, without --requests")
    say("--prompt-tokens", type=_count, default=128, help="of each prompt, template included; default: 128")
    say("--shared-tokens", type=_natural, default=0, help="of these at the beginning the same in all; default: 0")
    say("--answer-tokens", type=_count, default=128, help="of each answer; default: 128")
    say("--may-end", action="store_true", help="answers may end before: `ignore_eos` is not sent")
    say("--no-stream", action="store_true", help="whole answers: there is no first token then, and there are no gaps")
    say("--fields", type=_object, default={}, metavar="JSON", help="added to each request, as '{\"temperature\": 0}'")
    say("--timeout", type=_positive, default=300.0, help="seconds after which a request has failed; default: 300")
    say("--seed", type=int, help="of the prompts; default: another each time, so that no cache has them")
    say("--no-warm-up", action="store_true", help="without a request of each client before, which is not counted")
    say("--json", action="store_true", help="one JSON object in place of the page")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """1 where a request failed, or none could be made. Raises ConfigError."""
    from msgspec.json import encode
    from msgspec.structs import replace

    from llamafast.bench.address import read_address
    from llamafast.bench.load import Supply, Wanted, learned, measure, warm_up
    from llamafast.bench.summary import page, summed_up

    to = read_address(arguments.url, key_of(arguments))
    seconds = arguments.duration or (None if arguments.requests else _SECONDS)
    wanted = Wanted(
        clients=arguments.clients, requests=arguments.requests, seconds=seconds, rate=arguments.rate,
        prompt_tokens=arguments.prompt_tokens, shared_tokens=arguments.shared_tokens,
        answer_tokens=arguments.answer_tokens, may_end=arguments.may_end, stream=not arguments.no_stream,
        api=arguments.api, model=arguments.model or _first(to.models(), arguments.url), fields=arguments.fields,
        limit_s=arguments.timeout, seed=randrange(2**31) if arguments.seed is None else arguments.seed,
    )  # fmt: skip
    length = learned(to, replace(wanted, stream=False))
    if wanted.shared_tokens and length.words(wanted.shared_tokens) >= length.words(wanted.prompt_tokens):
        raise ConfigError("--shared-tokens is less than --prompt-tokens: each prompt has something of its own")
    if not arguments.no_warm_up:
        warm_up(to, wanted, length)
    what = f"{wanted.rate:g} requests a second" if wanted.rate else f"{wanted.clients} clients"
    how_long = f"{wanted.requests} requests" if seconds is None else f"{seconds:g} s"
    print(f"llamafast: {what}, {how_long} ...", file=sys.stderr)
    supply = Supply(wanted, length)
    with _first_interrupt(supply.stop if wanted.rate is None else None):
        measured = measure(to, wanted, supply)
    if not measured.exchanges:
        raise ConfigError("nothing was asked: the duration is too short for the rate")
    summary = summed_up(arguments.url, wanted, measured)
    print(encode(summary).decode() if arguments.json else page(summary, wanted))
    return int(summary.failed > 0)


@contextmanager
def _first_interrupt(stop: Callable[[], None] | None) -> Iterator[None]:
    """Ctrl-C asks for what was measured so far; the next one, and the first without ``stop``, ends the command."""
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def once(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        print("llamafast: waits for the answers that are under way ...", file=sys.stderr)
        stop()

    before = signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first(models: list[str], url: str) -> str:
    if not models:
        raise ConfigError(f"{url}: has no model; name one with --model")
    if len(models) > 1:
        print(f"llamafast: of the models {', '.join(models[:8])} the first; --model names another", file=sys.stderr)
    return models[0]


def _count(text: str) -> int:
    return _number(text, 1)


def _natural(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {least}")
    return int(text)


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text} is no time or rate")


def _object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError("is no JSON object")
    return fields
