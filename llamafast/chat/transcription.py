"""How a model that hears is asked for a transcript, and what of its replies is one.

A family of models was trained with words of its own for this; asked otherwise some answer what is said, or talk about
it. Families are told apart by libmtmd's names of their projectors, and one by a mark in its vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from unicodedata import category, east_asian_width

from llamafast.chat.request import Message
from llamafast.engine.types import Tokenizer
from llamafast.errors import UnsupportedParameter, Untokenizable

# Qwen3-ASR writes the language that it hears, this mark, and then the transcript.
ASR_MARK = "<asr_text>"
_HEARD = re.compile(r"\s*language [^<\n]{0,40}" + re.escape(ASR_MARK))
_LONGEST_HEARD = 80


class Words(NamedTuple):
    """What a family is asked: ``{of}`` is " in German" or " from German" where the language is known, else nothing.
    ``system`` is said in front. With ``context_only`` the model is asked nothing: it is told the context, and in the
    system prompt. Without words for ``translate`` it translates nothing."""

    transcribe: str = "Transcribe the speech{of} word for word. Answer with the transcript alone."
    translate: str = "Translate the speech{of} into English. Answer with the translation alone."
    system: str = ""
    context_only: bool = False


_GEMMA = Words(
    transcribe="Transcribe the following speech segment{of}. Only output the transcription, with no newlines.",
    translate="Translate the following speech segment{of} into English. Only output the translation, with no newlines.",
)
_FAMILIES = {
    "gemma3na": _GEMMA,
    "gemma4a": _GEMMA,
    "gemma4ua": _GEMMA,
    # one word more, and it says that it cannot hear
    "voxtral": Words(transcribe="Transcribe{of}", translate="Translate{of} into English"),
    "granite_speech": Words(
        transcribe="can you transcribe the speech{of} into a written format?",
        translate="can you translate the speech{of} into English?",
    ),
    "glma": Words(transcribe="Please transcribe this audio{of} into text"),
    "lfm2a": Words(transcribe="", system="Perform ASR."),
}
_QWEN3_ASR = Words(transcribe="", translate="", context_only=True)


class Speech(NamedTuple):
    """What a client says about what it sends: in which of ``languages`` somebody speaks (by their English names, none:
    nobody knows), what was said before or how it is to be written (``prompt``), and words that may occur.
    ``translated`` asks for English, whatever is spoken."""

    languages: Sequence[str] = ()
    prompt: str = ""
    keywords: Sequence[str] = ()
    translated: bool = False

    @property
    def context(self) -> list[str]:
        words = f"Words that may occur: {', '.join(self.keywords)}" if self.keywords else ""
        return [text for text in (self.prompt.strip(), words) if text]


def words_of(projectors: Iterable[str], tokenizer: Tokenizer) -> Words:
    """Those of the family that has these ``projectors``."""
    if _is_one_token(ASR_MARK, tokenizer):
        return _QWEN3_ASR
    return next((_FAMILIES[name] for name in projectors if name in _FAMILIES), Words())


def speech_messages(sound: str, speech: Speech, words: Words) -> list[Message]:
    """A conversation that asks for the transcript of a ``sound``, which is the word that stands for it. Raises
    UnsupportedParameter where a translation is asked of a model that makes none."""
    question = words.translate if speech.translated else words.transcribe
    if speech.translated and not question:
        raise UnsupportedParameter("this model writes down what it hears, and does not translate", param="model")
    languages, context = " or ".join(speech.languages), speech.context
    if languages and "{of}" not in question:
        context.insert(0, f"Language: {languages}")
    if words.context_only:
        system, asked = "\n".join(context), []
    else:
        of = f" {'from' if speech.translated else 'in'} {languages}" if languages else ""
        system = "" if speech.translated else words.system
        asked = [question.format(of=of), *(["Context:", *context] if context else [])]
    content = "\n".join([sound, *(line for line in asked if line)])
    front: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*front, {"role": "user", "content": content}]


def _is_one_token(text: str, tokenizer: Tokenizer) -> bool:
    try:
        return len(tokenizer.tokenize(text, add_special=False, parse_special=True)) == 1
    except Untokenizable:
        return False


class Transcript:
    """The text of pieces, joined: told as it comes, without white space around pieces and what a model says about them.

    Between two pieces there is a space, but not in scripts that have none between words.
    """

    def __init__(self) -> None:
        self.text = ""
        # of the piece: a beginning that may be no speech, or white space that may be its end
        self._held = ""
        self._is_speech = self._is_told = False

    def add(self, text: str) -> str:
        """What more is certain, now that a piece goes on with ``text``."""
        self._held += text
        if not self._is_speech:
            if (heard := _HEARD.match(self._held)) is not None:
                self._held = self._held[heard.end() :]
            elif _may_be_heard(self._held):
                return ""
            self._is_speech = True
        return self._tell()

    def end_piece(self) -> str:
        """What more is certain, now that a piece ends."""
        told = self._tell()
        self._held = ""
        self._is_speech = self._is_told = False
        return told

    def _tell(self) -> str:
        certain = self._held.rstrip()
        self._held = self._held[len(certain) :]
        if not self._is_told:
            certain = certain.lstrip()
            if not certain:
                return ""
            certain = _separator(self.text, certain) + certain
            self._is_told = True
        self.text += certain
        return certain


def _may_be_heard(begun: str) -> bool:
    """Whether a reply that begins so may say which language it hears."""
    text, front = begun.lstrip(), "language "
    if len(text) <= len(front):
        return front.startswith(text)
    return text.startswith(front) and len(text) < _LONGEST_HEARD and "\n" not in text


def _separator(before: str, behind: str) -> str:
    if not before:
        return ""
    return "" if _has_no_spaces(before[-1]) or _has_no_spaces(behind[0]) else " "


def _has_no_spaces(letter: str) -> bool:
    """Whether it belongs to Chinese or Japanese, or to Thai, Lao, Burmese or Khmer."""
    if category(letter) == "So":  # an emoji is as wide, in whatever script
        return False
    is_hangul = "\uac00" <= letter <= "\ud7a3" or "\u1100" <= letter <= "\u11ff"
    wide = east_asian_width(letter) in "WF" and not is_hangul
    return wide or "\u0e00" <= letter <= "\u0eff" or "\u1000" <= letter <= "\u109f" or "\u1780" <= letter <= "\u17ff"
