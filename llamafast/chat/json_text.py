"""JSON in a prompt: letters of any script as they are, as models have read most of it."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any) -> str:
    """Raises TypeError for what has no form in JSON, RecursionError for what is nested too deeply."""
    return json.dumps(value, ensure_ascii=False)
