"""How one model's chats are written and read: its template and the parser of its replies."""

from __future__ import annotations

from collections.abc import Sequence

from llamafast.chat.control import ControlTokens
from llamafast.chat.declared.response_schema import ResponseSchema
from llamafast.chat.declared.response_template import ResponseTemplate
from llamafast.chat.reply import NewParser, PlainReply
from llamafast.chat.template import ChatTemplate
from llamafast.chat.tools import Tool
from llamafast.engine.types import ModelInfo
from llamafast.errors import InvalidRequest


class ChatFormat:
    """``declared`` is how the config says to read replies, None where it does not.

    Raises ConfigError when the model's chat template does not compile, or for a declaration that cannot be used.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.control = ControlTokens(info.control_tokens)
        self.declared = _declared(info)
        self._template = self._compiled(info.chat_template, info)
        self._tool_use = self._compiled(info.tool_use_template, info)

    def _compiled(self, source: str | None, info: ModelInfo) -> ChatTemplate | None:
        return None if source is None else ChatTemplate(source, info.bos_text, info.eos_text, self.control)

    def template(self, tools: Sequence[Tool]) -> ChatTemplate:
        """The template for a conversation with these tools: some models have one of its own for that.

        Raises InvalidRequest for a model without any.
        """
        template = (tools and self._tool_use) or self._template
        if template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions")
        return template

    def parser(self, prompt: str, tools: Sequence[Tool], *, split_reasoning: bool) -> NewParser:
        """What reads the replies to ``prompt``; ``tools`` are those that the model may call."""
        if self.declared is None:
            return PlainReply
        return self.declared.parser(prompt, tools, split_reasoning=split_reasoning)


def _declared(info: ModelInfo) -> ResponseSchema | ResponseTemplate | None:
    if info.response_schema is not None:
        return ResponseSchema(info.response_schema)
    return None if info.response_template is None else ResponseTemplate(info.response_template)
