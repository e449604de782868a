"""The language: Request to Plan. No HTTP, no threads."""
