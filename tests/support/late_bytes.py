"""A tier below the prefix cache, as a disk would be one: the bytes of what was found come later, or never."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from llamafast._core.states import State
from llamafast.engine.cache import PrefixCache


class LateCache(PrefixCache):
    """Bytes are here once they were put or ``bring`` has brought what was asked for, until they ``sink`` or nobody
    holds them any more. Any thread may ``bring``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked: list[State] = []
        self.here: dict[State, bool] = {}
        self.lock = threading.Lock()

    def saved(self, state):
        with self.lock:
            if state.kept and state not in self.here:
                if state not in self.asked:
                    self.asked.append(state)
                return None
            return super().saved(state) if self.here.get(state, True) else b""

    def put(self, tokens, salt, saved, invoked=None):
        state = super().put(tokens, salt, saved, invoked)
        with self.lock:
            self.here[state] = True
        return state

    def sink(self):
        """What nobody holds is not here any more."""
        with self.lock:
            self.here = {state: done for state, done in self.here.items() if state in self._held}

    def let_go(self, state):
        super().let_go(state)
        if state not in self._held:
            with self.lock:
                self.here.pop(state, None)
                if state in self.asked:
                    self.asked.remove(state)

    def bring(self, done=True):
        """What was asked for first comes, or is lost; False where nothing was."""
        with self.lock:
            if not self.asked:
                return False
            self.here[self.asked.pop(0)] = done
            return True


class Bringer:
    """A thread that brings what ``cache`` is asked for, each after about ``seconds`` and all but every tenth, as long
    as the gate is open."""

    def __init__(self, cache: LateCache, wake: Callable[[], None], seconds: float, losses: float = 0.1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self._cache, self._wake, self._seconds, self._losses = cache, wake, seconds, losses
        self._closing = threading.Event()
        self._chance = random.Random(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self.gate.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds * self._chance.random()):
            self.gate.wait()
            if self._cache.bring(self._chance.random() >= self._losses):
                self._wake()
