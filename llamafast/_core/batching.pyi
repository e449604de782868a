"""Nothing for Python: the Runner cimports it."""
