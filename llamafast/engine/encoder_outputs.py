"""Which sequences wait for rows of media, and rows as they come."""

from __future__ import annotations

from collections.abc import Callable, Collection

from llamafast._core.runner import Runner
from llamafast._core.sequence import PHASE_RESTORING, PHASE_WAITING, Sequence
from llamafast.engine.media import Encoding, MediaEncoder, MediaSpan, Medium
from llamafast.errors import EngineFailure, InvalidRequest, LlamafastError


class EncoderOutputs:
    """Asks the encoder for what sequences are about to compute, once for each medium of a sequence. Engine thread only.

    A sequence whose KV is there already asks for nothing: not until it turns out to stand before rows after all, for
    what it was to get from elsewhere may not come.
    """

    def __init__(self, runner: Runner, encoder: MediaEncoder | None, on_news: Callable[[], None]) -> None:
        self._runner = runner
        self._encoder = encoder
        self._on_news = on_news
        self._wanted: dict[Sequence, dict[bytes, Encoding]] = {}
        self._ahead: dict[Sequence, dict[bytes, Encoding]] = {}
        self._news = False

    @property
    def has_news(self) -> bool:
        """Whether ``deliver`` has something to do: rows have come, or somebody stands before some that nobody has asked
        for."""
        return self._news or any(self._is_stranded(*one) for one in self._wanted.items())

    @property
    def awaits(self) -> bool:
        """Whether rows are to come."""
        return bool(self._wanted)

    def want(self, sequence: Sequence, n_there: int) -> None:
        """Ask for the rows of a sequence that runs, but not for those of its first ``n_there`` tokens."""
        if not sequence.media:
            return
        ahead = self._ahead.pop(sequence, {})
        self._wanted[sequence] = self._all_asked(sequence, n_there, ahead)
        _leave(ahead)
        self._news = True  # some may be there already

    def look_ahead(self, waiting: Collection[Sequence], n_there: Callable[[Sequence], int]) -> None:
        """Ask for the rows of those who are to run next, and of nobody else who waits."""
        for sequence in waiting:
            if sequence.media and sequence not in self._ahead:
                self._ahead[sequence] = self._all_asked(sequence, n_there(sequence), {})
        for sequence in [sequence for sequence in self._ahead if sequence not in waiting]:
            _leave(self._ahead.pop(sequence))

    def deliver(self) -> list[tuple[Sequence, LlamafastError]]:
        """Give sequences the rows that have come; who will not get them, and why."""
        self._news = False
        failed: list[tuple[Sequence, LlamafastError]] = []
        for sequence, encodings in list(self._wanted.items()):
            if sequence.finished or sequence.phase == PHASE_WAITING:
                self._drop(sequence)
                continue
            sequence.drop_rows(wanted=True)
            spans = self._from(sequence, sequence.n_past)
            if not spans:
                self._drop(sequence)
            elif (error := self._give(sequence, spans, encodings)) is not None:
                failed.append((sequence, error))
                self._drop(sequence)
        return failed

    def forget(self, sequence: Sequence) -> None:
        """It is not to be computed any further."""
        if sequence in self._wanted:
            self._drop(sequence)

    def clear(self) -> None:
        """Nobody runs any more."""
        for sequence in list(self._wanted):
            self._drop(sequence)
        self.look_ahead((), lambda sequence: 0)

    @staticmethod
    def _is_stranded(sequence: Sequence, encodings: dict[bytes, Encoding]) -> bool:
        i = None if sequence.phase == PHASE_RESTORING else sequence.awaited
        return i is not None and sequence.media[i].medium.digest not in encodings

    def _all_asked(self, sequence: Sequence, n_there: int, ahead: dict[bytes, Encoding]) -> dict[bytes, Encoding]:
        """Those behind ``n_there`` tokens; which have been asked for ``ahead`` are taken out of there."""
        media = {span.medium.digest: span.medium for span in self._from(sequence, n_there)}
        return {
            digest: ahead.pop(digest) if digest in ahead else self._asked(medium, sequence.salt)
            for digest, medium in media.items()
        }

    def _asked(self, medium: Medium, salt: bytes) -> Encoding:
        assert self._encoder is not None, "plans with media are for models that take some"
        return self._encoder.encode(medium, salt, self._told)

    def _told(self) -> None:
        """Any thread."""
        self._news = True
        self._on_news()

    def _give(
        self, sequence: Sequence, spans: list[MediaSpan], encodings: dict[bytes, Encoding]
    ) -> LlamafastError | None:
        first = sequence.next_span(sequence.n_past)
        for i, span in enumerate(spans, first):
            encoding = encodings.get(span.medium.digest)
            if encoding is None:
                if sequence.phase == PHASE_RESTORING or sequence.awaited != i:
                    continue
                encoding = encodings[span.medium.digest] = self._asked(span.medium, sequence.salt)
            if encoding.error is not None:
                return _blamed(encoding.error, span.medium)
            rows = encoding.rows(span.chunk)
            if rows is not None:
                try:
                    self._runner.give_rows(sequence, i, rows)
                except ValueError:  # a projector that makes more of this shape than of those that were tried
                    return EngineFailure(f"this {span.medium.kind} has more rows than a step of this server takes")
        return None

    @staticmethod
    def _from(sequence: Sequence, n_there: int) -> list[MediaSpan]:
        return list(sequence.media[sequence.next_span(n_there) :])

    def _drop(self, sequence: Sequence) -> None:
        sequence.drop_rows()
        _leave(self._wanted.pop(sequence))


def _leave(encodings: dict[bytes, Encoding]) -> None:
    for encoding in encodings.values():
        encoding.leave()


def _blamed(error: LlamafastError, medium: Medium) -> LlamafastError:
    """Others may wait for the same medium, which has another place in their requests."""
    if not isinstance(error, InvalidRequest):
        return error
    return type(error)(error.message, param=medium.path)
