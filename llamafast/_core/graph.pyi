"""Nothing for Python: Context cimports it."""
