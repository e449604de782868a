"""The vocabulary of the tiny models, which is byte-level BPE, and the chat template in its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count, pairwise

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
MEDIA_TOKENS = [
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|audio_pad|>", "<|audio_bos|>",
    "<|audio_eos|>", "<start_of_image>", "<end_of_image>", "<fake_token_around_image>", "<global-img>",
]  # fmt: skip
USER_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
MERGE_SOURCE = (
    "a small model answers the user with the words that it was given and the user reads the answer in the stream "
    "then the next user sends another message and the server sends the stream of that answer while the other answers "
    "are still on their way so that every reader sees the text as soon as the engine has made it hello world system"
)
MAX_MERGES = 200

CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content or [] -%}
            {%- if part.type == 'text' -%}{{- part.text -}}
            {%- elif part.type.startswith('image') -%}{{- '<|image_pad|>' -}}
            {%- elif part.type.startswith('video') -%}{{- '<|video_pad|>' -}}
            {%- elif 'audio' in part.type -%}{{- '<|audio_pad|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's reversible byte → printable character table."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = map(chr, count(256))
    return {byte: chr(byte) if byte in printable else next(stand_ins) for byte in range(256)}


ALPHABET = byte_alphabet()


def symbols(text: str) -> str:
    """``text`` as byte-level BPE writes it in a token table."""
    return "".join(ALPHABET[byte] for byte in text.encode())


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def learn_merges(text: str, limit: int) -> list[tuple[str, str]]:
    """The first ``limit`` byte-pair merges of ``text``; fewer when it runs out of pairs."""
    words = Counter(tuple(symbols(" " + word)) for word in text.split())
    merges: list[tuple[str, str]] = []
    known: set[str] = set()
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                if "".join(pair) not in known:
                    pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        known.add("".join(best))
        words = Counter({merged(word, best): times for word, times in words.items()})
    return merges


class Vocabulary:
    """A byte-level BPE vocabulary of exactly ``size`` tokens: 256 bytes, merges, ``pieces`` of text, padding, marks.

    Padding tokens are normal text that no merge makes, so that a sampler really has ``size`` candidates and every
    one of them has a text. ``control`` adds control tokens to the usual ones.
    """

    def __init__(self, size: int, *, pieces: Iterable[str] = (), control: Sequence[str] = ()) -> None:
        marks = [*USER_TOKENS, *MEDIA_TOKENS, *CONTROL_TOKENS, *control]
        self.merges = [(symbols("\n"), symbols("\n")), *learn_merges(MERGE_SOURCE, MAX_MERGES - 1)]
        text = [*ALPHABET.values(), *("".join(pair) for pair in self.merges)]
        known = {*text, *marks}
        text += [symbols(piece) for piece in pieces if symbols(piece) not in known]
        text += [symbols(f" w{i:06d}") for i in range(size - len(text) - len(marks))]
        self.tokens = [*text, *marks]
        self.types = [NORMAL] * len(text) + [USER_DEFINED] * len(USER_TOKENS)
        self.types += [CONTROL] * (size - len(self.types))
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if not len(self.tokens) == len(self.ids) == size:
            raise ValueError(f"{size} tokens are too few, or a token occurs twice")

    def __len__(self) -> int:
        return len(self.tokens)

    def id(self, piece: str) -> int:
        """The id of a mark, or of a piece of text that is one token."""
        return self.ids[piece] if piece in self.ids else self.ids[symbols(piece)]
