"""What families are asked for a transcript, and what of their replies is one."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import ByteTokenizer

from llamafast.chat.languages import language_name
from llamafast.chat.transcription import Speech, Transcript, speech_messages, words_of
from llamafast.errors import InvalidRequest, UnsupportedParameter

WORD = "<a word>"
GEMMA = "Transcribe the following speech segment in French. Only output the transcription, with no newlines."
PLAIN = ByteTokenizer()


class AsrTokenizer(ByteTokenizer):
    def tokenize(self, text: str, **options: Any) -> array[int]:
        return array("i", [7]) if text == "<asr_text>" else super().tokenize(text, **options)


def asked(speech: Speech, *projectors: str, tokenizer: Any = PLAIN) -> dict[str, str]:
    messages = speech_messages(WORD, speech, words_of(projectors, tokenizer))
    return {message["role"]: message["content"] for message in messages}


def test_any_family_is_asked_for_every_word_and_nothing_else() -> None:
    told = asked(Speech(), "ultravox")
    assert told == {"user": f"{WORD}\nTranscribe the speech word for word. Answer with the transcript alone."}
    assert "speech in German word" in asked(Speech(("German",)))["user"]
    assert "in German or Polish" in asked(Speech(("German", "Polish")))["user"]


def test_a_translation_is_asked_for_in_english() -> None:
    assert "into English" in asked(Speech(translated=True))["user"]
    assert "from German into English" in asked(Speech(("German",), translated=True), "voxtral")["user"]


def test_context_stands_behind_what_is_asked() -> None:
    told = asked(Speech(prompt=" Dear Ms Zoë, ", keywords=("GGUF", "Zoë")))["user"]
    assert told.endswith("alone.\nContext:\nDear Ms Zoë,\nWords that may occur: GGUF, Zoë")


@pytest.mark.parametrize(
    ("projectors", "speech", "expected"),
    [
        (("voxtral",), Speech(), {"user": f"{WORD}\nTranscribe"}),
        (("gemma4v", "gemma4a"), Speech(("French",)), {"user": f"{WORD}\n{GEMMA}"}),
        (("granite_speech",), Speech(), {"user": f"{WORD}\ncan you transcribe the speech into a written format?"}),
        (("lfm2a",), Speech(), {"system": "Perform ASR.", "user": WORD}),
        (("lfm2a",), Speech(("French",)), {"system": "Perform ASR.", "user": f"{WORD}\nContext:\nLanguage: French"}),
    ],
)  # fmt: skip
def test_families_are_asked_in_the_words_they_know(projectors: Any, speech: Speech, expected: Any) -> None:
    assert asked(speech, *projectors) == expected


def test_a_model_that_only_transcribes_is_told_the_context_and_asked_nothing() -> None:
    tokenizer = AsrTokenizer()
    assert asked(Speech(), "qwen3a", tokenizer=tokenizer) == {"user": WORD}
    told = asked(Speech(("German",), "Zoë"), "qwen3a", tokenizer=tokenizer)
    assert told == {"system": "Language: German\nZoë", "user": WORD}
    with pytest.raises(UnsupportedParameter, match="does not translate"):
        asked(Speech(translated=True), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("said", "name"),
    [("en", "English"), ("EN", "English"), ("pt-BR", "Portuguese"), ("zh_TW", "Chinese"), ("german", "German")],
)
def test_languages_have_codes_regions_and_names(said: str, name: str) -> None:
    assert language_name(said, "language") == name


@pytest.mark.parametrize("said", ["", "xx", "english please", "e", "-", "x" * 1000])
def test_a_language_that_nobody_knows(said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"`languages`: .* is no code of a language") as caught:
        language_name(said, "languages")
    assert caught.value.param == "languages"
    assert len(caught.value.message) < 120


def told(*pieces: list[str]) -> tuple[list[str], str]:
    transcript, deltas = Transcript(), []
    for piece in pieces:
        deltas += [transcript.add(text) for text in piece]
        deltas.append(transcript.end_piece())
    return [text for text in deltas if text], transcript.text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([["Hello", " there."], ["\n How are", " you? \n"]], "Hello there. How are you?"),
        ([[" "], ["", "a"], ["  \n"], ["b"]], "a b"),
        ([["你好"], ["世界"]], "你好世界"),
        ([["สวัสดี"], ["ครับ"]], "สวัสดีครับ"),
        ([["안녕"], ["하세요"]], "안녕 하세요"),
        ([["end。"], ["Begin"]], "end。Begin"),
        ([["Hi 😀"], ["there"]], "Hi 😀 there"),
        ([["language English<asr_text>And so"]], "And so"),
        ([["langu", "age Eng", "lish<asr", "_text>", " And so "], ["language None<asr_text>"]], "And so"),
        ([["language is a gift"]], "language is a gift"),
        ([["language"]], "language"),
        ([["language English<b>", " and so on, until nobody can take it for more than that " * 2]], None),
        ([], ""),
    ],
)
def test_pieces_are_one_text(pieces: Any, text: str | None) -> None:
    deltas, whole = told(*pieces)
    assert "".join(deltas) == whole
    assert whole == ("".join(pieces[0]).strip() if text is None else text)


@given(pieces=st.lists(st.lists(st.text(alphabet="ab \n。<l", max_size=6), max_size=5), max_size=5))
def test_what_is_streamed_is_the_whole_text_however_it_comes(pieces: list[list[str]]) -> None:
    deltas, whole = told(*pieces)
    assert "".join(deltas) == whole
    assert whole == whole.strip()
    assert whole == told(*[["".join(piece)] for piece in pieces])[1]
