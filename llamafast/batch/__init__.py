"""The room of ``llamafast batch``: OpenAI's batch files through an engine of its own, or a server that runs."""
