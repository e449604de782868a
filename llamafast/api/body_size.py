"""What a body may come to: its bytes, and what its JSON takes to decode.

Decoding holds the GIL, and with it the event loop, for as long as one call takes. A long text costs little, small
values by the million cost seconds. So what is outside of strings is counted while the bytes arrive.
"""

from __future__ import annotations

from llamafast.errors import BodyTooLarge, QueueFull

# About 5 ns each on a busy core, so that one call takes about 50 ms at most. Within it are 400,000 token ids, 300,000
# short strings, 60,000 members of objects, 2 million escapes, or text and indentation as long as bodies may be.
MAX_WORK = 2**23
# what a byte outside of strings costs, and on top of it:
ITEM_WORK = 14  # a comma
QUOTE_WORK = 6
MEMBER_WORK = 96  # an object, a list, a member of an object
ESCAPE_WORK = 4
# A token id with its comma. Where a prompt may have more of them than MAX_WORK allows, that prompt is the limit; of all
# else there may be as much as ever.
ID_WORK = 24

# Bodies of the largest size that may be here at once.
BODIES_AT_ONCE = 8
# What each body may hold beside the budget, so that short requests pass whatever long ones there are.
FREE_BYTES = 16 * 1024


class BodyLimits:
    """What one body may come to, ``max_bytes`` and room for the ids of ``max_prompt`` tokens, and all that arrive, wait
    or are answered at once: ``max_held`` bytes beside the first FREE_BYTES of each."""

    __slots__ = ("_max_held", "held", "max_bytes", "max_work")

    def __init__(self, max_bytes: int, max_held: int, max_prompt: int = 0) -> None:
        self.max_bytes = max_bytes
        self.max_work = max(MAX_WORK, ID_WORK * max_prompt)
        self.held = 0
        self._max_held = max_held

    def hold(self, n_bytes: int) -> None:
        """Raises QueueFull."""
        if self.held + n_bytes > self._max_held:
            raise QueueFull(f"the requests in progress hold {self.held} bytes already")
        self.held += n_bytes


class BodySize:
    """Counts one body piece by piece, each of at most some hundred KB; ``n_bytes`` is what came so far. One that is no
    JSON has no values to be counted."""

    __slots__ = ("_backslash", "_held", "_in_string", "_is_json", "_limits", "_no_ids", "_work", "n_bytes")

    def __init__(self, limits: BodyLimits, *, is_json: bool = True) -> None:
        self._limits = limits
        self._is_json = is_json
        self._held = 0
        self._work = 0
        self._no_ids = 0  # of it, what no list of ids takes
        self._in_string = 0
        self._backslash = b""  # the last byte so far, where it escapes the next one
        self.n_bytes = 0

    def add(self, piece: bytes) -> None:
        """Raises BodyTooLarge as soon as the body is, exactly for JSON whatever the pieces, or QueueFull."""
        self.n_bytes += len(piece)
        if self.n_bytes > self._limits.max_bytes:
            raise too_many_bytes(self._limits.max_bytes)
        if (n_more := self.n_bytes - FREE_BYTES - self._held) > 0:
            self._limits.hold(n_more)
            self._held += n_more
        if self._is_json:
            self._count(piece)
        if self._work > self._limits.max_work or self._no_ids > MAX_WORK:
            raise BodyTooLarge(
                "the body holds too many JSON values: lists of more than some 400,000 numbers "
                "or objects with more than some 60,000 members in all are not decoded"
            )

    def release(self) -> None:
        """The body is forgotten. Idempotent."""
        self._limits.held -= self._held
        self._held = 0

    def _count(self, piece: bytes) -> None:
        piece = self._backslash + piece
        work = 0
        if b"\\" in piece:
            plain = piece.replace(b"\\\\", b"")
            self._backslash = b"\\" if plain.endswith(b"\\") else b""
            if self._backslash:
                plain = plain[:-1]
            work += ESCAPE_WORK * ((len(piece) - len(plain)) // 2 + plain.count(b"\\"))
            piece = plain.replace(b'\\"', b"")
        else:
            self._backslash = b""
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        n_quotes = len(parts) - 1
        self._in_string ^= n_quotes & 1
        n_members = len(outside) - len(outside.translate(None, b"[{:"))
        work += MEMBER_WORK * n_members + QUOTE_WORK * n_quotes
        self._no_ids += work
        self._work += work + len(outside) + ITEM_WORK * outside.count(b",")


def too_many_bytes(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes} bytes")
