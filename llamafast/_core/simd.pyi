# The instruction sets in use.
NAMES: tuple[str, ...]

def instruction_set() -> str: ...
