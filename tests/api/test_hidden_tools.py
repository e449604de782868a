"""Tools that the model is not shown: of each kind the log tells once, and clients choose the kinds."""

from __future__ import annotations

import pytest

from llamafast.api import hidden_tools
from llamafast.api.hidden_tools import MAX_WARNED, warn_of_hidden


def test_the_log_tells_of_few_kinds(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_tools, "_warned", set())
    for _ in range(2):
        for n in range(2 * MAX_WARNED):
            warn_of_hidden(f"kind_{n}")
    assert len(caplog.records) == MAX_WARNED
