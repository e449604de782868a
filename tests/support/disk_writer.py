"""A process that writes entries to a disk tier until it is killed, and tells the id of each that is there.

    python disk_writer.py FOLDER FIRST MAX_BYTES

Entries are numbered from FIRST on, each the heir of the one before but for every fifth.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support.driven_store import Driven, order_of

N_BYTES = 30_000


def main(folder: str, first: str, max_bytes: str) -> None:
    one = Driven(Path(folder), max_bytes=int(max_bytes))
    one.listed()
    os.write(1, b"ready\n")
    number, before = int(first), None
    while True:
        order = order_of(number, N_BYTES + number % 7 * 5000, base=before if number % 5 else None)
        if one.write(order).head is None:
            break
        os.write(1, b"%d\n" % number)
        number, before = number + 1, order
    os.write(1, b"full\n")
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
