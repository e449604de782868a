"""Becomes the server of a batch, which ends when whoever started it does, however that ends.

usage: python -m llamafast.batch.child CONFIG
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", "llamafast", "serve", sys.argv[1]])


if __name__ == "__main__":
    main()
