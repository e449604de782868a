"""A conversation as its model's template writes it."""
