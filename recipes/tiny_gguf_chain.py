"""Chains: the token that follows each one in greedy decoding, and what tiny-scripted answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recipes.tiny_gguf_vocabulary import ALPHABET, CHATML, NORMAL, Vocabulary

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

# What tiny-scripted answers after each trigger, token by token. A chain sees one token back only, so no piece may
# occur twice, in whichever script.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "<|s_text|>": ("Hello", " there", ",", " this", " reply", " is", " fixed", "."),
    "<|s_tool|>": (
        "<tool_call>", '\n{"name": "get_', 'weather", "arg', 'uments": {"city"', ': "Paris"}}\n', "</tool_call>"
    ),
    "<|s_think|>": ("<think>", "\nLet me", " reason", " briefly.\n", "</think>", "\n\nThe", " answer is 4."),
    "<|s_json|>": ('{"a"', ": 1, ", '"b": [', "true", ", null]}"),
    "<|s_calls|>": (
        "Two", " calls.\n", "<tool", '_call>{"name":', ' "get_wea', 'ther", "argum', 'ents": {"city": "Ro',
        'me"}}</tool', "_call>\n<to", 'ol_call>{"name": "get_', "weather", '", "arguments": {"ci', 'ty": "Oslo"',
        "}}</", "tool_call>",
    ),
    "<|s_all|>": (
        "<thi", "nk>\nI need", " the weather.\n</", "think>\n\n", "On it.", '<tool_call>\n{"name"', ': "get_weather"',
        ', "arguments"', ': {"city"', ': "Bonn', '"}}\n</tool_call', ">\n",
    ),
}  # fmt: skip
# The first trigger found in the last message ends the prompt. The comment shows how the model reasons.
SCRIPTED_CHATML = (
    """\
{%- if tools -%}
    {{- '<|im_start|>system\\nCall with <tool_call> one of ' ~ tools | tojson ~ '<|im_end|>\\n' -}}
{%- endif -%}
{#- <think> </think> -#}
"""
    + CHATML
    + f"""\
{{%- if add_generation_prompt -%}}
    {{%- for trigger in {list(SCRIPTS)} if trigger in messages[-1].content | string -%}}
        {{%- if loop.first -%}}{{{{- trigger -}}}}{{%- endif -%}}
    {{%- endfor -%}}
{{%- endif -%}}
"""
)


def loops(vocab: Vocabulary, period: int = 64) -> Ids:
    """A successor table made of loops of ``period`` printable tokens, so that greedy text never ends and repeats.

    Every other token leads into a loop.
    """
    normal = [i for i in range(len(vocab)) if vocab.types[i] == NORMAL]
    printable = [i for i in normal if i >= len(ALPHABET) or "!" <= vocab.tokens[i] <= "~"]
    order = np.random.default_rng(7).permutation(printable)
    successors = np.empty(len(vocab), np.int64)
    for start in range(0, len(order), period):
        loop = order[start : start + period]
        successors[loop] = np.roll(loop, -1)
    others = np.setdiff1d(np.arange(len(vocab)), order)
    successors[others] = order[np.arange(len(others)) % len(order)]
    return successors


def chain_output(embeddings: Floats, successors: Ids) -> Floats:
    """The output matrix under which token t is followed by ``successors[t]``.

    A row is the sum of the directions of the tokens that lead to it; a row that nothing leads to is zero.
    """
    rows = np.zeros_like(embeddings)
    np.add.at(rows, successors, 3 * embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    return rows
