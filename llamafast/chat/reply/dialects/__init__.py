"""How families of models write reasoning and tool calls, and the parser that reads it."""
