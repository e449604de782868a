"""From generated text to Deltas: by dialect, or as the config declares."""
