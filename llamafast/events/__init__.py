"""What is told to routers: which blocks of prompts this server has, over ZeroMQ, as vLLM tells it."""
