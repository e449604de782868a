"""A conversation in the terminal, with a server that runs or a model that is served for it alone."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from time import sleep

from llamafast.cli.conversation import NOBODY, Conversation, Measured, Server, ServerRefused
from llamafast.cli.given import config_of, hub_name, key_of
from llamafast.cli.words import DEFAULT, HELP, harmless
from llamafast.config import PoolConfig
from llamafast.errors import ConfigError

POLL_SECONDS = 0.1
_ADDRESS = re.compile(r"[\w.-]+:\d+(/.*)?", re.ASCII)
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def talk(arguments: argparse.Namespace) -> int:
    """Where the standard input is no terminal, all of it is one question. Raises ConfigError or ModelLoadError."""
    for stream in (sys.stdin, sys.stdout):
        # what is no text here, or cannot be shown here, ends no conversation
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with _server(arguments) as server:
        try:
            conversation = Conversation(server, server.model(), arguments.system, arguments.max_tokens)
            if sys.stdin.isatty():
                _talk(conversation)
                return 0
            question = sys.stdin.read().strip()
            return 0 if not question or _answer(conversation, question, is_only=True) else 1
        except ServerRefused as error:
            raise ConfigError(f"the server says {error}") from error
        except NOBODY as error:
            raise ConfigError(f"no server answers: {type(error).__name__}: {error}") from error


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[Server]:
    named = any(one is not None for one in (arguments.config_file, arguments.model_path, arguments.hub))
    url = arguments.model
    if url is None and not named and not os.environ.get("LLAMAFAST_MODEL"):
        url = DEFAULT
    if url is not None and "://" in url and hub_name(url) is None:
        _about_a_server(arguments, named)
        server = Server(url, key_of(arguments))
        try:
            if url == DEFAULT and arguments.model is None:
                _expect(server)
            yield server
        finally:
            server.close()
        return
    if url is not None and _ADDRESS.fullmatch(url) and not os.path.exists(url) and hub_name(url) is None:
        raise ConfigError(f"{url}: no such file; did you mean http://{url}?")
    config = config_of(arguments)
    if isinstance(config, PoolConfig):
        raise ConfigError("models: serve several, and give that server's URL")
    from llamafast.batch.served import served
    from llamafast.model_files import resolve_model

    # a terminal that is closed is the end of most conversations, and nothing is to be left of this one
    end_by(signal.SIGHUP, signal.SIGTERM)
    # here, where its bar is seen
    resolve_model(config.model.source)
    with served(config, apart=True) as process:
        server = Server("http://localhost", uds=process.uds)
        try:
            _tell("loading ...")
            while not server.is_ready():
                process.check()
                sleep(POLL_SECONDS)
            yield server
        finally:
            server.close()


def end_by(*numbers: int) -> None:
    """Let these signals end the process, by SystemExit in the main thread, whatever that waits for. One that comes
    between the prompt and the wait for a line, or to another thread, interrupts no wait: it is sent until it is heard.
    """

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    def insist() -> None:
        while (number := os.read(came, 1)[0]) not in numbers:
            pass
        while True:
            sleep(POLL_SECONDS)
            signal.pthread_kill(main, number)

    main = threading.get_ident()
    came, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, end)
    threading.Thread(target=insist, name="signals", daemon=True).start()


def _about_a_server(arguments: argparse.Namespace, named: bool) -> None:
    """Raises ConfigError for what is said of a model, where a server that runs has its own."""
    if named:
        raise ConfigError("a model, or the URL of a server, and not both")
    if settings := getattr(arguments, "settings", ()):
        raise ConfigError(
            f"{settings[0].said}: is about a model that is served for this: `llamafast chat MODEL`; "
            "a server that runs is `llamafast chat http://HOST:PORT`"
        )


def _expect(server: Server) -> None:
    try:
        server.model()
    except ServerRefused:
        pass  # it is told when it is asked
    except NOBODY as error:
        raise ConfigError(
            f"no server answers at {DEFAULT}; `llamafast chat MODEL` starts one, `llamafast chat URL` finds another"
        ) from error


def _talk(conversation: Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited and called again

    _tell(f"{conversation.model}; /help says what there is beside talking")
    while True:
        try:
            line = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _tell("Ctrl-D or /exit ends")
            continue
        word, _, rest = line.partition(" ")
        if not line:
            continue
        if word in ("/exit", "/quit", "/bye"):
            return
        if word == "/reset":
            conversation.said.clear()
        elif word == "/system":
            if rest.strip():
                conversation.system = rest.strip()
                conversation.said.clear()
            else:
                _tell(conversation.system or "no system prompt")
        elif word == "/help":
            _tell(HELP)
        elif word.startswith("/") and word[1:].isalpha():
            _tell(f"{word}: no such command; /help has them")
        else:
            _answer(conversation, line)


def _read() -> str:
    """A line, with those that it goes on in."""
    line = input("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('. ')}"
    return line.strip()


def _answer(conversation: Conversation, question: str, *, is_only: bool = False) -> bool:
    """Print it as it comes; whether it came to its end. The only one is printed without what was thought."""
    measured = Measured()
    thinking = False
    try:
        with closing(conversation.ask(question, measured)) as pieces:
            for piece in pieces:
                if piece.is_reasoning and is_only:
                    continue
                if piece.is_reasoning != thinking:
                    thinking = piece.is_reasoning
                    _mark(thinking)
                print(harmless(piece.text), end="", flush=True)
    except KeyboardInterrupt:
        if is_only:
            raise
        if thinking:
            _mark(False)
        print()
        _tell("stopped")
        return False
    except ServerRefused as error:
        if is_only:
            raise
        _break_off(measured)
        _tell(f"the server says {error}")
        return False
    except NOBODY as error:
        if is_only:
            raise
        _break_off(measured)
        _tell(f"no answer: {type(error).__name__}: {error}")
        return False
    if thinking:
        _mark(False)
    print()
    if not is_only:
        _tell(measured.in_words())
    return True


def _break_off(measured: Measured) -> None:
    """Behind what has come of an answer."""
    if measured.first_seconds is not None:
        print(_PLAIN if _is_coloured() else "")


def _mark(thinking: bool) -> None:
    """Where thoughts begin and end."""
    if _is_coloured():
        print(_DIM if thinking else f"{_PLAIN}\n\n", end="")
    else:
        print("[thinking] " if thinking else "\n\n", end="")


def _is_coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _tell(text: str) -> None:
    """Something that is not the model's, to people alone."""
    if (text := harmless(text)) and sys.stdin.isatty():
        print(f"{_DIM}{text}{_PLAIN}" if _is_coloured() else text, flush=True)
