"""Processes that encode media, each with a child of its own that ends with the test."""

from __future__ import annotations

import pytest
from support.encoding import Opened, begin

from llamafast.media.process import MediaProcess


@pytest.fixture
def process():
    process = MediaProcess(begin())
    process.ready = process.start()
    yield process
    process.close()


@pytest.fixture
def opened():
    opened = Opened()
    yield opened
    opened.encoder.close()
