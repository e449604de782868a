"""OpenAI's shapes under OpenAI's names."""
