"""What a model's file says of it that clients are told or prompts are made with."""

from __future__ import annotations

from typing import NamedTuple


class FimTokens(NamedTuple):
    """The tokens by which a text is filled in: what stands before and behind the gap, and where it is written; what
    fills it up, and what announces a repository and a file. -1 where there is none. Some models read what is behind
    the gap first, before what the gap continues: ``suffix_first``."""

    prefix: int = -1
    suffix: int = -1
    middle: int = -1
    pad: int = -1
    repository: int = -1
    file: int = -1
    suffix_first: bool = False

    @property
    def fills_in(self) -> bool:
        """Whether there are enough: where the text before the gap comes last, the gap is right behind it."""
        return min(self.prefix, self.suffix) >= 0 and (self.middle >= 0 or self.suffix_first)


class Weights(NamedTuple):
    """How many numbers a model has, in how many bytes, how wide a row of them is, how most are written, and which
    architecture llama.cpp takes it for."""

    n_params: int = 0
    n_bytes: int = 0
    n_embd: int = 0
    quantisation: str = ""
    architecture: str = ""
