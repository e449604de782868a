"""The room of /v1/chat/completions: its schema, its endpoint and its frames."""
