"""Which sequences wait for rows of media, and rows as they come."""

from __future__ import annotations

from collections.abc import Callable

from llamafast._core.runner import Runner
from llamafast._core.sequence import PHASE_FOLLOWING, PHASE_RESTORING, PHASE_WAITING, Sequence
from llamafast.engine.media import Encoding, MediaEncoder, MediaSpan, Medium
from llamafast.errors import EngineFailure, InvalidRequest, LlamafastError

_RUNNING_ELSEWHERE = (PHASE_RESTORING, PHASE_FOLLOWING)


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
        encodings = self._wanted.setdefault(sequence, {})
        for span in self._from(sequence, n_there):
            if span.medium.digest not in encodings:
                encodings[span.medium.digest] = self._asked(span.medium, sequence.salt)
        self._news = True  # some may be there already

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

    @staticmethod
    def _is_stranded(sequence: Sequence, encodings: dict[bytes, Encoding]) -> bool:
        i = None if sequence.phase in _RUNNING_ELSEWHERE else sequence.awaited
        return i is not None and sequence.media[i].medium.digest not in encodings

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
                if sequence.phase in _RUNNING_ELSEWHERE or sequence.awaited != i:
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
        for encoding in self._wanted.pop(sequence).values():
            encoding.leave()


def _blamed(error: LlamafastError, medium: Medium) -> LlamafastError:
    """Others may wait for the same medium, which has another place in their requests."""
    if not isinstance(error, InvalidRequest):
        return error
    return type(error)(error.message, param=medium.path)
