"""How one model's chats are written and read: its template and the parser of its replies."""

from __future__ import annotations

from collections.abc import Sequence

from llamafast.chat.reply import NewParser, PlainReply
from llamafast.chat.template import ChatTemplate
from llamafast.chat.tools import Tool
from llamafast.engine.types import ModelInfo


class ChatFormat:
    """Raises ConfigError when the model's chat template does not compile."""

    def __init__(self, info: ModelInfo) -> None:
        source = info.chat_template
        self.template = None if source is None else ChatTemplate(source, info.bos_text, info.eos_text)

    def parser(self, prompt: str, tools: Sequence[Tool], *, split_reasoning: bool) -> NewParser:
        """What reads the replies to ``prompt``; ``tools`` are those that the model may call."""
        return PlainReply
