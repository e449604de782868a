"""Model files that are made from packages, so that nothing needs a model hub."""
