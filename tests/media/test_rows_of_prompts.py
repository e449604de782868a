"""What is refused before rows of media are put into a prompt: more of them than it has room for, and stray words."""

from __future__ import annotations

import msgspec
import pytest
from support.fake_encoder import fake_medium
from support.fake_engine import INFO, ByteTokenizer

from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import plan_chat
from llamafast.chat.prompt import media as media_module
from llamafast.chat.request import ChatTask
from llamafast.config import ModelConfig
from llamafast.engine.media import MediaRows, Medium
from llamafast.errors import ContextLengthExceeded, InvalidMedia

MODEL = msgspec.structs.replace(INFO, modalities=("image",))
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def with_rows(*n_rows: int) -> Medium:
    """One that nobody has encoded, so it may claim any number of rows."""
    chunks = tuple(MediaRows(n, n, True) for n in n_rows)
    return Medium(kind="image", digest=bytes(32), chunks=chunks, source=None)


@pytest.mark.parametrize(
    ("media", "told"),
    [
        ([with_rows(2**40)], 2**40),
        ([with_rows(INFO.max_seq_len + 1)], INFO.max_seq_len + 1),
        ([with_rows(300, 2**40), with_rows(1)], 2**40 + 301),
        ([with_rows(INFO.max_seq_len), with_rows(1)], INFO.max_seq_len + 1),
    ],
)
def test_more_rows_than_the_context_are_refused_before_ids_are_made(monkeypatch, media, told):
    """A video may claim millions, of which each would take some microseconds and bytes."""
    monkeypatch.setattr(media_module, "row_ids", lambda *asked: pytest.fail(f"ids for {asked}"))
    chat = ChatFormat(ModelConfig(), MODEL, ByteTokenizer())
    collected = chat.media_parts(("image",))
    messages = collected.messages([{"role": "user", "content": [IMAGE] * len(media)}])
    task = ChatTask(messages=messages, media=media, sources=collected.sources)
    with pytest.raises(ContextLengthExceeded, match=f"{told} rows of media") as caught:
        plan_chat(task, chat, ByteTokenizer(), MODEL)
    assert caught.value.param == "messages"


def test_a_word_that_no_message_has_is_told_as_out_of_order():
    """A template may print what is no content, and nothing else then."""
    chat = ChatFormat(ModelConfig(), MODEL, ByteTokenizer())
    collected = chat.media_parts(("image",))
    word = collected.word(IMAGE, "messages[0].content[0]")
    message = {"role": "assistant", "content": "text", "reasoning": word}
    with pytest.raises(InvalidMedia, match="out of their order") as caught:
        media_module.check_words(f"text{word}", [message], collected.sources, chat.control)
    assert caught.value.param == "messages[0].content[0].image_url.url"


def test_one_row_less_is_planned():
    chat = ChatFormat(ModelConfig(), MODEL, ByteTokenizer())
    collected = chat.media_parts(("image",))
    messages = collected.messages([{"role": "user", "content": [IMAGE]}])
    task = ChatTask(messages=messages, media=[fake_medium(1)], sources=collected.sources)
    assert [span.rows.n_rows for span in plan_chat(task, chat, ByteTokenizer(), MODEL).plan.media] == [9]
