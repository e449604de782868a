"""llamafast: an OpenAI-compatible server for GGUF models. Importing the package loads nothing heavy."""

__version__ = "0.1.0"
