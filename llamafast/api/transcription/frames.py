"""What a streamed transcript looks like: its text as it becomes certain, and all of it at the end."""

from __future__ import annotations

from llamafast.api.sse import HOLE, encode, frame, frame_pieces
from llamafast.api.transcription.schema import TextDelta, TextDone, TranscriptionUsage


class TranscriptFrames:
    """The frames of one request: text, which comes with every token, is filled into one that was encoded once."""

    def __init__(self) -> None:
        self._before, self._after = frame_pieces(TextDelta(HOLE))

    def delta(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, encode(text), self._after)

    def done(self, text: str, usage: TranscriptionUsage) -> bytes:
        return frame(TextDone(text, usage))
