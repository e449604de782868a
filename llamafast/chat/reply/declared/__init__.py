"""Replies read as the config file declares: ``response_template`` and ``response_schema``."""
