"""Benchmarks: the served path against the bare llama_decode loop on the same work. ``python -m benchmarks --help``."""
