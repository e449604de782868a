"""Text to be filled in between two others → tokens, as models of code have learnt to read it.

Other files come first, each behind its name, then what stands before the gap and behind it. What the client sent is
plain text: none of it becomes a control token. What does not fit is left out where it is farthest from the gap, in
steps: between two of them a prompt begins as that of the keystroke before, and only what is new is computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from llamafast.chat.request import Task
from llamafast.engine.model_facts import FimTokens
from llamafast.engine.types import ModelInfo, Tokenizer
from llamafast.errors import UnsupportedParameter, Untokenizable

# What models have read where no name was known.
_REPOSITORY, _FILE = "myproject\n", "filename\n"
_BETWEEN = "\n\n--- snippet ---\n\n"
# Of what fits, the part before the gap has three quarters at most and the part behind it one; output of no bound is
# left a quarter of the context.
_QUARTERS = 4
# So many times as many characters as can fit are tokenised, those nearest to the gap.
_SPARE = 2
# The steps in which a text is cut, as parts of the context.
_STEPS = 16


class Chunk(NamedTuple):
    """Of another file."""

    text: str
    filename: str = ""


class InfillTask(Task, frozen=True, kw_only=True):
    """What comes between ``prefix`` and ``suffix`` is wanted, in a project that has ``chunks`` too, oldest first."""

    prefix: str
    suffix: str
    chunks: Sequence[Chunk] = ()


def infill_tokens(task: InfillTask, tokenizer: Tokenizer, info: ModelInfo) -> array[int]:
    """The prompt, from BOS to the mark of the gap. Raises UnsupportedParameter for a model that fills nothing in."""
    fim = info.fim
    check_fills_in(fim, task.named("suffix"))
    begin = tokenizer.tokenize("", add_special=True, parse_special=False)[:1]
    output = info.max_seq_len // _QUARTERS if task.max_tokens is None else min(task.max_tokens, info.max_seq_len // 2)
    room = max(0, info.max_seq_len - output - len(begin) - 3)
    longest = _SPARE * info.max_seq_len * info.longest_piece
    step = max(1, info.max_seq_len // _STEPS)
    text = task.prefix[_dropped(len(task.prefix), longest, max(1, longest // _STEPS)) :]
    before = _plain(text, task.named("prefix"), tokenizer)
    behind = _plain(task.suffix[:longest], task.named("suffix"), tokenizer)[: room // _QUARTERS]
    most = room - room // _QUARTERS
    left = room - min(most, len(before)) - len(behind)
    before = before[_dropped(len(before), most, step) :]
    parts = [begin, _context(task, tokenizer, info, left // step * step)]
    sides = [array("i", [fim.prefix]) + before, array("i", [fim.suffix]) + behind]
    middle = array("i", [fim.middle] if fim.middle >= 0 else [])
    return sum([*parts, *(reversed(sides) if fim.suffix_first else sides), middle], array("i"))


def _dropped(n: int, most: int, step: int) -> int:
    """How many of ``n`` are left out at the beginning so that ``most`` are left at most."""
    return max(0, n - most + step - 1) // step * step


def check_fills_in(fim: FimTokens, field: str) -> None:
    """Raises UnsupportedParameter that names ``field`` for a model without tokens for it."""
    if not fim.fills_in:
        told = f"`{field}`: this model has no tokens by which a text is filled in"
        raise UnsupportedParameter(told, param=field)


def fim_ends(fim: FimTokens) -> tuple[int, ...]:
    """The tokens that end what is filled in."""
    return tuple(token for token in (fim.pad, fim.repository, fim.file) if token >= 0)


def _context(task: InfillTask, tokenizer: Tokenizer, info: ModelInfo, room: int) -> array[int]:
    """As many of the newest chunks as have ``room``, in their order, behind what announces them."""
    fim = info.fim
    head = array("i")
    if fim.repository >= 0:
        head += array("i", [fim.repository]) + _plain(_REPOSITORY, "", tokenizer)
    last = array("i")
    if fim.file >= 0:
        last = array("i", [fim.file]) + _plain(_FILE, "", tokenizer)
    left = room - len(head) - len(last)
    if left < 0:
        return array("i")
    kept: list[array[int]] = []
    for i, chunk in reversed(list(enumerate(task.chunks))):
        if left <= 0:
            break
        if fim.file >= 0:
            tokens = array("i", [fim.file]) + _plain(f"{chunk.filename or 'tmp'}\n", "", tokenizer)
        else:
            tokens = _plain(_BETWEEN, "", tokenizer)
        text = chunk.text[: _SPARE * left * info.longest_piece]
        tokens += _plain(text, f"input_extra[{i}].text", tokenizer)
        tokens = tokens[:left]
        left -= len(tokens)
        kept.append(tokens)
    return sum([head, *reversed(kept), last], array("i"))


def _plain(text: str, path: str, tokenizer: Tokenizer) -> array[int]:
    with Untokenizable.named(path):
        return tokenizer.tokenize(text, add_special=False, parse_special=False)
