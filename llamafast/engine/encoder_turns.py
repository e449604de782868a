"""Turns of the encoder's process on the CPUs that compute, where these leave it none."""

from __future__ import annotations

import threading

from llamafast.engine.media import MediaEncoder


class EncoderTurns:
    """A claimant of the engine thread's time: it computes nothing itself, and lets the encoder's process do so.

    Between two turns that process is stopped, so streams see pauses that were allowed for and no others. Engine thread,
    but for ``wake``.
    """

    def __init__(self, encoder: MediaEncoder) -> None:
        self._encoder = encoder
        self._news = threading.Event()

    @property
    def has_work(self) -> bool:
        return self._encoder.busy

    def begin(self) -> None:
        """All news so far are known."""
        self._news.clear()

    def step(self, seconds: float) -> None:
        """Let it run for so long, or until it has nothing to do or there is news."""
        self._encoder.resume()
        if self._encoder.busy:
            self._news.wait(seconds)
        self._encoder.pause()

    def wake(self) -> None:
        """There is news for the engine thread. Any thread."""
        self._news.set()
