"""The SQLite table of long texts that stored items refer to: each once for its owner, as long as a response has it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from llamafast.api.responses.stored_items import Payload, Payloads, references

# Of a text is in one row. SQLite's module copies a row with the GIL held.
_PIECE_BYTES = 1 << 20

# Keys begin with the owner, so that nobody learns what others keep. The rows of a text go with the last response that
# uses it, whatever becomes of that; they count in the same totals.
SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS payloads (
    owner TEXT, digest TEXT, start INTEGER, bytes INTEGER, piece BLOB, PRIMARY KEY (owner, digest, start)
)
""",
    """
CREATE TABLE IF NOT EXISTS payload_uses (
    owner TEXT, response_id TEXT, digest TEXT, PRIMARY KEY (owner, response_id, digest),
    FOREIGN KEY (owner, response_id) REFERENCES responses (owner, id) ON DELETE CASCADE
) WITHOUT ROWID
""",
    "CREATE INDEX IF NOT EXISTS payload_uses_by_digest ON payload_uses (owner, digest)",
    """
CREATE TRIGGER IF NOT EXISTS payload_stored AFTER INSERT ON payloads BEGIN
    UPDATE owners SET bytes = bytes + new.bytes WHERE owner = new.owner;
    UPDATE total SET bytes = bytes + new.bytes;
END
""",
    """
CREATE TRIGGER IF NOT EXISTS payload_forgotten AFTER DELETE ON payloads BEGIN
    UPDATE owners SET bytes = bytes - old.bytes WHERE owner = old.owner;
    UPDATE total SET bytes = bytes - old.bytes;
END
""",
    """
CREATE TRIGGER IF NOT EXISTS payload_unused AFTER DELETE ON payload_uses
WHEN NOT EXISTS (SELECT * FROM payload_uses WHERE owner = old.owner AND digest = old.digest) BEGIN
    DELETE FROM payloads WHERE owner = old.owner AND digest = old.digest;
END
""",
)


def keep(db: sqlite3.Connection, owner: str, response_id: str, payloads: Mapping[str, bytes | memoryview]) -> None:
    """Within the transaction that stores the response: what it uses, by digests, and of that what is not there yet."""
    for digest, payload in payloads.items():
        known = db.execute("SELECT 1 FROM payload_uses WHERE owner = ? AND digest = ? LIMIT 1", (owner, digest))
        if known.fetchone() is None:
            for start in range(0, len(payload), _PIECE_BYTES):
                piece = payload[start : start + _PIECE_BYTES]
                db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?, ?)", (owner, digest, start, len(piece), piece))
        db.execute("INSERT INTO payload_uses VALUES (?, ?, ?)", (owner, response_id, digest))


def read(db: sqlite3.Connection, owner: str, blobs: Iterable[bytes]) -> Payloads:
    """Within the transaction that has read ``blobs``: by digests, what their items refer to."""
    found: Payloads = {}
    for digest in dict.fromkeys(digest for blob in blobs for digest in references(blob)):
        text = found[digest] = Payload(digest)
        for (piece,) in db.execute(
            "SELECT piece FROM payloads WHERE owner = ? AND digest = ? ORDER BY start", (owner, digest)
        ):
            text += piece
    return found
