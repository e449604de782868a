"""The wire: bytes to Requests, Deltas to Frames. No prompts, no tokens."""
