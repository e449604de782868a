"""The clock: one thread per model. No text formats, no JSON."""
