"""The language: what a client asks, as a task, to the Plan, and the text that comes of it. No HTTP, no threads."""
