"""What ``llamafast chat`` says of itself, and how the words of others are shown."""

from __future__ import annotations

import re

# Of C0 and C1, but for tabs and line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

DEFAULT = "http://127.0.0.1:8000"
HELP = """\
/reset          begin again
/system [TEXT]  the system prompt: show it, or set it and begin again
/help           this
/exit           the end, as Ctrl-D is
Ctrl-C stops an answer; a line that ends with \\ goes on in the next one."""


def harmless(text: str) -> str:
    """What servers, models and files say, so that it is shown and does nothing to a terminal."""
    return _CONTROL.sub("", text)
