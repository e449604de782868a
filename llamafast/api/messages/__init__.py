"""The room of /v1/messages, Anthropic's API: its endpoint, its events, and what its blocks and tools are."""
