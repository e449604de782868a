"""A Masker's threads as the engine has them: one for usual grammars, one for slow ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llamafast._core.masks import Masker


@contextmanager
def masking(masker: Masker) -> Iterator[list[threading.Thread]]:
    """Both lanes run: on a busy machine any grammar may be a slow one, and wait for ever where its lane is not."""
    threads = [threading.Thread(target=masker.run, kwargs={"slow": slow}) for slow in (False, True)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        masker.close()
        for thread in threads:
            thread.join()
