from llamafast.chat.reply import ContentDelta, PlainReply


def test_plain_text_is_content_and_nothing_is_held_back():
    parser = PlainReply()
    assert parser.feed("<think>") == [ContentDelta("<think>")]
    assert parser.feed("") == []
    assert parser.finish() == []
