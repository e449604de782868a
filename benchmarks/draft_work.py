"""What benchmarks of drafts ask for: copies, extracts, edits of code, turns of an agent, JSON, free text.

Prompts are of this repository's documents and code, and none comes twice. A small model copies behind an example of
what it is to do, and often says something else without one; so copies, extracts, edits and JSON have one, and agents a
turn that has shown the note.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parents[1]
CHATML = "<|im_start|>{role}\n{text}<|im_end|>\n"
FREE = (
    "Write a short story about {}.", "Explain to a child what {} is.", "What should I know about {} before I travel?",
    "Write a letter to a friend about {}.", "Give me some advice on {}.",
)  # fmt: skip
SUBJECTS = (
    "a lighthouse", "the tides", "baking bread", "an old bridge", "learning chess", "a lost dog", "winter", "trains",
    "bees", "a small museum", "mountain rivers", "the first snow", "gardens", "a clock maker", "sailing", "the moon",
)  # fmt: skip

NAMES = (
    "Anna", "Bertram", "Chiara", "Dmitri", "Eleni", "Farid", "Greta", "Hamish", "Ingrid", "Joaquin", "Katya", "Luca",
)  # fmt: skip
FAMILIES = (
    "Albrechtsen", "Bonaventura", "Castellanos", "Dubrovnik", "Eriksdottir", "Featherstone", "Grimaldi", "Haverkamp",
)  # fmt: skip
PLACES = (
    "Aberystwyth", "Ljubljana", "Thessaloniki", "Reykjavik", "Montevideo", "Antananarivo", "Gothenburg", "Bratislava",
)  # fmt: skip
CRAFTS = (
    "restores harpsichords", "inspects lighthouses", "translates crime novels", "breeds alpacas",
    "teaches comparative anatomy", "drives night trains", "grows mushrooms in cellars", "mends fishing nets",
)  # fmt: skip
# What "json" asks for.
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "town": {"type": "string", "maxLength": 40},
        "work": {"type": "string", "maxLength": 60},
    },
    "required": ["name", "age", "town", "work"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}


class Texts:
    """Paragraphs and functions of this repository, shuffled; none is given twice."""

    def __init__(self, seed: int) -> None:
        chance = self.chance = random.Random(seed)
        prose = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
        blocks = (re.sub(r"\s+", " ", block) for block in re.split(r"\n\s*\n", prose))
        self._prose = [block for block in blocks if 180 < len(block) < 420 and block[0].isalnum() and "|" not in block]
        self._code = [code for path in sorted((ROOT / "llamafast").rglob("*.py")) for code in functions(path)]
        chance.shuffle(self._prose)
        chance.shuffle(self._code)
        pairs = [(one, other) for one in SUBJECTS for other in SUBJECTS if one != other]
        self._free = [f"{form.format(one)} Say something of {other} too." for form in FREE for one, other in pairs]
        chance.shuffle(self._free)

    def prose(self) -> str:
        self._prose.insert(0, text := self._prose.pop())
        return text

    def code(self) -> str:
        self._code.insert(0, text := self._code.pop())
        return text

    def people(self) -> tuple[str, str]:
        """Three of them, in words and as JSON."""
        choice = self.chance.choice
        some = [
            {"name": f"{choice(NAMES)} {choice(FAMILIES)}", "age": self.chance.randrange(20, 90),
             "town": choice(PLACES), "work": choice(CRAFTS)}
            for _ in range(3)
        ]  # fmt: skip
        words = " ".join("{name}, who is {age}, lives in {town} and {work}.".format(**one) for one in some)
        return words, json.dumps(some)

    def free(self) -> str:
        self._free.insert(0, text := self._free.pop())
        return text


def functions(path: Path) -> Iterator[str]:
    """Indented as if each stood by itself: a model would mend the lines of one that is not, and copy none."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            code = dedent(ast.get_source_segment(source, node, padded=True) or "")
            if 250 < len(code) < 600:
                yield code


def renamed(code: str) -> tuple[str, str]:
    """What is asked for, and the code as it is to be."""
    name = re.search(r"def (\w+)", code)
    old = name[1] if name else "f"
    request = f"Rename the function `{old}` to `{old}_of`. Answer with the whole changed code only."
    return request, re.sub(rf"\b{old}\b", f"{old}_of", code)


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def chat(*turns: tuple[str, str]) -> str:
    return "".join(CHATML.format(role=role, text=text) for role, text in turns) + "<|im_start|>assistant\n"


def asked(work: str, texts: Texts, k: int) -> str:
    """The prompt of stream ``k``."""
    if work == "mixed":
        work = ("copy", "free")[k % 2]
    if work == "copy":
        request, shown = "Repeat this text word for word, and say nothing else.", texts.prose()
        return chat(("user", f"{request}\n\n{shown}"), ("assistant", shown), ("user", f"{request}\n\n{texts.prose()}"))
    if work == "extract":
        pair = (texts.prose(), texts.prose())
        which = texts.chance.randrange(2)
        request = f"Quote the {('first', 'second')[which]} of these two paragraphs exactly."
        earlier = (texts.prose(), texts.prose())
        return chat(
            ("user", f"{request}\n\n1. {earlier[0]}\n\n2. {earlier[1]}"), ("assistant", earlier[which]),
            ("user", f"{request}\n\n1. {pair[0]}\n\n2. {pair[1]}"),
        )  # fmt: skip
    if work == "code edit":
        shown, code = texts.code(), texts.code()
        (request, changed), (asked_for, _) = renamed(shown), renamed(code)
        return chat(
            ("user", f"{request}\n\n{fenced(shown)}"), ("assistant", fenced(changed)),
            ("user", f"{asked_for}\n\n{fenced(code)}"),
        )  # fmt: skip
    if work == "agent":
        found = texts.prose()
        return chat(
            ("system", "You call tools and then tell the user exactly what they answered."),
            ("user", "What does the note say? Quote it in full."),
            ("assistant", '<tool_call>{"name": "read_note", "arguments": {}}</tool_call>'),
            ("user", f"<tool_response>{found}</tool_response>\nNow quote the note in full."),
        )
    if work == "json":
        request, (named, rows), (told, _) = "Give me these people as JSON.", texts.people(), texts.people()
        return chat(("user", f"{request}\n\n{named}"), ("assistant", rows), ("user", f"{request}\n\n{told}"))
    return chat(("user", texts.free()))


def form_of(work: str) -> dict[str, Any]:
    """The fields of its request that say what the answer has to be like."""
    return {"json_schema": PEOPLE} if work == "json" else {}


WORKS = ("copy", "extract", "code edit", "agent", "json", "free", "mixed")
