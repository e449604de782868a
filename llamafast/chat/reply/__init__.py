"""What generated text means: Deltas, and the parsers that read them out of it."""
