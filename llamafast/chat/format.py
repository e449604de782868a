"""How one model's chats are written and read: its template and the parser of its replies."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial

from llamafast.chat.grammar.asked import Letters
from llamafast.chat.prompt.control import ControlTokens
from llamafast.chat.prompt.media import MediaParts
from llamafast.chat.prompt.template import NAMED, ChatTemplate
from llamafast.chat.reply.declared.response_schema import ResponseSchema
from llamafast.chat.reply.declared.response_template import ResponseTemplate
from llamafast.chat.reply.deltas import NewParser, PlainReply
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.tables import dialect_named, recognised
from llamafast.chat.reply.thoughts import Thoughts, begun_message
from llamafast.chat.tools import Tool
from llamafast.config import ModelConfig
from llamafast.engine.media import MediaKind
from llamafast.engine.types import ModelInfo, Tokenizer
from llamafast.errors import ConfigError, InvalidRequest, Untokenizable

# What a base model is published without.
_TEMPLATES = 'name one in `model.chat_template`, a Jinja text or "chatml", or use /v1/completions'


class ChatFormat:
    """By the config, and where it says nothing by the GGUF's own templates. ``declared`` is how the config says to read
    replies, None where it does not: then the ``dialect`` does, and ``preserved_tokens`` are control tokens that are
    marks of it, whose text the parser has to see; ``thoughts`` ends its reasoning. ``written_calls`` is the form of
    calls in prompts, with control tokens in disguise.

    Raises ConfigError when the model's chat template does not compile, for a declaration that cannot be used or an
    unknown dialect.
    """

    def __init__(self, config: ModelConfig, info: ModelInfo, tokenizer: Tokenizer) -> None:
        self.control = ControlTokens(info.control_tokens)
        self.declared = _declared(config)
        template, tool_use = info.chat_template, info.tool_use_template
        self._origin = "GGUF"
        if told := config.chat_template_text:
            template, tool_use, self._origin = NAMED.get(told, told), None, "model.chat_template"
        self._template = self._compiled(template, info, "tokenizer.chat_template")
        self._tool_use = self._compiled(tool_use, info, "tokenizer.chat_template.tool_use")
        if config.dialect is None:
            self.dialect = recognised(f"{template or ''}{tool_use or ''}")
        else:
            self.dialect = dialect_named(config.dialect)
        self.written_calls = self.dialect.forms[0].spelled(self.control.disguise)
        marks = {mark: _tokens(mark, tokenizer) for mark in self.dialect.marks()}
        single = {mark: tokens[0] for mark, tokens in marks.items() if len(tokens) == 1}
        self.preserved_tokens = tuple(sorted(set(single.values())))
        control = {mark: token for mark, token in single.items() if tokenizer.is_control(token)}
        self.thoughts = Thoughts(self.dialect, tokenizer)
        self.letters = Letters(self.dialect, control, tuple(tokenizer.eog_tokens()))

    def _compiled(self, source: str | None, info: ModelInfo, key: str) -> ChatTemplate | None:
        """Of the config, or of the GGUF's ``key``. Raises ConfigError that says so."""
        if source is None:
            return None
        try:
            return ChatTemplate(source, info.bos_text, info.eos_text, self.control)
        except ConfigError as error:
            whose = f"the GGUF's {key} (model.chat_template takes its place)"
            raise ConfigError(f"{whose if self._origin == 'GGUF' else self._origin}: {error}") from error

    @property
    def has_template(self) -> bool:
        return self._template is not None or self._tool_use is not None

    def summary(self) -> str:
        """One line on how this model's chats are written and read. Asks the templates what they take, which takes
        some 10 ms once: no request should wait for it."""
        templates = [template for template in (self._template, self._tool_use) if template is not None]
        if not templates:
            return f"no template, so chats are refused: {_TEMPLATES}"
        accepts = [template.accepts for template in templates][-1]
        calls = f"{self.dialect.name}, printed by the template"
        if not (accepts.tools and accepts.calls):
            calls = f"{self.dialect.name}, told in words as the template prints none"
        if self.declared is not None:
            calls += ", replies as model.response_template or response_schema declares"
        thoughts = ", ".join(begin for begin, _ in self.dialect.reasoning) or "none"
        reasoning = "channels" if self.dialect.channels else thoughts
        return f"template from {self._origin}; tool calls: {calls}; reasoning: {reasoning}"

    def media_parts(self, modalities: Sequence[MediaKind]) -> MediaParts:
        """What collects the media of one request to a model that takes ``modalities``."""
        return MediaParts(modalities, self.control.media_word)

    def template(self, tools: Sequence[Tool]) -> ChatTemplate:
        """The template for a conversation with these tools: some models have one of its own for that.

        Raises InvalidRequest for a model without any.
        """
        template = (tools and self._tool_use) or self._template
        if template is None:
            raise InvalidRequest(f"this model has no chat template: {_TEMPLATES}")
        return template

    def parser(self, prompt: str, tools: Sequence[Tool], *, split_reasoning: bool, continued: str = "") -> NewParser:
        """What reads the replies to ``prompt``; ``tools`` are those that the model may call, ``continued`` are thoughts
        that the prompt ends with. Calls in the form that the
        prompt asks for in words are the dialect's."""
        if self.declared is not None and not (tools and not self.template(tools).accepts.tools):
            return self.declared.parser(prompt, tools, split_reasoning=split_reasoning)
        dialect = self.dialect
        if not (tools or dialect.channels or dialect.dropped or (dialect.reasoning and split_reasoning)):
            return PlainReply
        if dialect.channels:
            begun = prompt[max(prompt.rfind("<|start|>"), 0) :]
        else:
            begun = self.begun_reasoning(prompt, continued)
        return partial(DialectParser, dialect, tools, split_reasoning=split_reasoning, begun=begun)

    def begun_thoughts(self, prompt: str, continued: str = "") -> str:
        """The mark behind which a reply to ``prompt`` begins with thoughts, "" where it does not: that of
        ``begun_reasoning``, or the header of a message of Harmony's that the prompt leaves open."""
        return begun_message(prompt) if self.dialect.channels else self.begun_reasoning(prompt, continued)

    def begun_reasoning(self, prompt: str, continued: str = "") -> str:
        """The mark of reasoning that ``prompt`` ends with, before the thoughts ``continued``, "" for none."""
        end = prompt.rstrip().removesuffix(continued.strip())[-256:].rstrip()
        return next((begin for begin, _ in self.dialect.reasoning if end.endswith(begin)), "")


def _tokens(mark: str, tokenizer: Tokenizer) -> array[int]:
    """A mark's tokens; none where the vocabulary cannot spell it, as that of another family's model may not."""
    try:
        return tokenizer.tokenize(mark, add_special=False, parse_special=True)
    except Untokenizable:
        return array("i")


def _declared(config: ModelConfig) -> ResponseSchema | ResponseTemplate | None:
    if config.response_schema is not None:
        return ResponseSchema(config.response_schema)
    return None if config.response_template is None else ResponseTemplate(config.response_template)
