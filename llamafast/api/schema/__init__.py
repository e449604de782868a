"""The wire shapes of endpoints without a room of their own, and what all have in common."""
