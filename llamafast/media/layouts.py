"""What the process for media was asked to look at, and who waits for the answer."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from llamafast.errors import InvalidMedia, LlamafastError, ProjectorFailure
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.wire import LayOut


class _Asked(NamedTuple):
    """``blamed``: a process died when it was the first. ``wanted``: somebody waits for the answer."""

    message: LayOut
    file: AnonymousFile
    done: concurrent.futures.Future[Any]
    blamed: bool = False
    wanted: bool = True


class Layouts:
    """By job, in the order in which they were asked for. Its owner's lock is held whenever it is changed; nobody is
    told anything with that: ``tell`` and ``refuse`` give what is to be done without it."""

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, message: LayOut, file: AnonymousFile) -> concurrent.futures.Future[Any]:
        """Its answer, or InvalidMedia or EngineFailure, will be in the future."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._asked[message.job] = _Asked(message, file, done)
        return done

    def leave(self, done: concurrent.futures.Future[Any]) -> int | None:
        """Nobody waits for ``done`` any more: the number of the job, which stays in its place until it is told of: a
        process may die of it yet. None where it was told of already."""
        for job, asked in self._asked.items():
            if asked.done is done:
                self._asked[job] = asked._replace(wanted=False)
                return job
        return None

    def tell(self, job: int, answer: Any) -> Callable[[], None] | None:
        """None for a job that is none of these."""
        if (asked := self._asked.pop(job, None)) is None:
            return None
        return partial(_tell, asked.done, answer)

    def refuse(self, job: int, reason: str | None) -> Callable[[], None] | None:
        """``reason`` is what is wrong with the medium; None: the process failed on it."""
        if (asked := self._asked.pop(job, None)) is None:
            return None
        error = ProjectorFailure(asked.message.kind) if reason is None else InvalidMedia(reason)
        return partial(refuse, asked.done, error)

    def refuse_all(self, error: LlamafastError) -> list[Callable[[], None]]:
        asked, self._asked = self._asked, {}
        return [partial(refuse, one.done, error) for one in asked.values()]

    def again(self, send: Callable[[LayOut, AnonymousFile], None]) -> list[Callable[[], None]]:
        """``send`` a new process what waits. What has been the first when two of them died is to blame for that, and is
        refused: pictures have a thread of their own there, so two may be. So is what nobody waits for."""
        asked, self._asked = self._asked, {}
        failed: list[_Asked] = []
        begun: set[bool] = set()
        for one in asked.values():
            lane = one.message.kind == "image"
            first, begun = lane not in begun, begun | {lane}
            if (first and one.blamed) or not one.wanted:
                failed.append(one)
            else:
                self._asked[one.message.job] = one._replace(blamed=one.blamed or first)
                send(one.message, one.file)
        return [partial(refuse, one.done, ProjectorFailure(one.message.kind)) for one in failed]


def refused(error: LlamafastError) -> concurrent.futures.Future[Any]:
    """The answer to what is not looked at."""
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    done.set_exception(error)
    return done


def refuse(done: concurrent.futures.Future[Any], error: LlamafastError) -> None:
    """Whoever waited may have left."""
    if done.set_running_or_notify_cancel():
        done.set_exception(error)


def _tell(done: concurrent.futures.Future[Any], answer: Any) -> None:
    if done.set_running_or_notify_cancel():
        done.set_result(answer)
