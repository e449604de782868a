"""A chat request's conversation as text: what its template reads, and where later conversations may part from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llamafast.chat.format import ChatFormat
from llamafast.chat.prompt.accepts import Accepts
from llamafast.chat.prompt.generic_tools import (
    document_prompt,
    tool_prompt,
    with_descriptions,
    with_fields_in_text,
    with_schemas,
)
from llamafast.chat.prompt.media import Spliced, check_words, splice
from llamafast.chat.prompt.messages import normalise_messages
from llamafast.chat.prompt.printed import check_printed
from llamafast.chat.request import ChatTask, Message
from llamafast.engine.types import Tokenizer
from llamafast.errors import InvalidRequest

_RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"}
)
# The values of `reasoning_effort` that ask for an answer without thinking.
_NO_REASONING = frozenset({"none", "minimal"})
_SYSTEM_ROLES = frozenset({"system", "developer"})
# Stands for any other text: a noncharacter.
_OTHER_TEXT = "\ufdd3"


class Conversation:
    """A chat request's conversation as its template renders it.

    ``text`` has ``chat.prompt.control``'s marks, ``prompt`` is what a reader should see.

    Raises InvalidRequest or UnsupportedParameter, and what ``check_size`` raises of the prompt's length in characters.
    """

    def __init__(self, task: ChatTask, chat: ChatFormat, *, check_size: Callable[[int], None] | None = None) -> None:
        self._task = task
        self._control = chat.control
        self._template = chat.template(task.tools.shown)
        self._form = chat.written_calls
        continued = task.continue_final_message
        if continued and task.add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` and `add_generation_prompt` exclude each other",
                param="continue_final_message",
            )
        self.text = self._render(
            task.messages,
            add_generation_prompt=not continued and task.add_generation_prompt is not False,
            continue_final_message=continued,
        )
        prompt = chat.control.unmark(self.text)
        self.prompt = chat.control.without_words(prompt)
        if check_size is not None:  # before more is read of what is too long
            check_size(len(self.prompt))
        check_words(self.text, task.messages, task.sources, chat.control)
        check_printed(prompt, task, chat.control)

    @property
    def unread(self) -> tuple[str, ...]:
        """What the request says to its template and that does not read, by the client's names."""
        task, reads = self._task, self._template.reads
        switches = bool(reads & {"enable_thinking", "thinking"})
        said = {
            "reasoning_effort": task.reasoning_effort is not None and not switches and "reasoning_effort" not in reads,
            # a budget of nothing holds without it
            "enable_thinking": task.enable_thinking is not None and not switches and task.reasoning_budget != 0,
            "verbosity": task.verbosity is not None and "verbosity" not in reads,
        }
        variables = [f"chat_template_kwargs.{name}" for name in task.variables if name not in reads]
        return (*variables, *(task.named(name) for name, unread in said.items() if unread))

    def spliced(self, tokenizer: Tokenizer) -> Spliced:
        """The text's tokens, with media among them."""
        return splice(self.text, self._task.media, self._control, tokenizer)

    def checkpoints(self, prompt: Spliced, tokenizer: Tokenizer) -> tuple[int, ...]:
        """How many of the prompt's tokens a conversation shares that has only the system prompt and the tools in
        common, and one whose last user turn is another: both up to the last control token before they part. And where
        media end.
        """
        roles = [message.get("role") for message in self._task.messages]
        first = next((i for i, role in enumerate(roles) if role not in _SYSTEM_ROLES), None)
        last = max((i for i, role in enumerate(roles) if role == "user"), default=None)
        shared = [self._shared(i) for i in {first, last} if i is not None]
        lengths = self._control.certain_lengths(self.text, shared, prompt.text, tokenizer)
        return tuple(sorted({*(prompt.with_media(n) for n in lengths if n), *prompt.checkpoints()}))

    def _shared(self, n_messages: int) -> int:
        """How many characters of the text a conversation shares that goes on differently after so many messages."""
        other = [*self._task.messages[:n_messages], {"role": "user", "content": _OTHER_TEXT}]
        try:
            return _common_length(self.text, self._render(other, add_generation_prompt=False))
        except InvalidRequest:
            # what the template refuses never comes
            return 0

    def _render(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool | str = False,
    ) -> str:
        accepts = self._template.accepts
        try:
            tools, documents, preface = self._beside(accepts)
            given = normalise_messages(messages, accepts, form=self._form, preface=preface)
            text = self._template.render(
                given,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **{"documents": documents, **_template_variables(self._task)},
            )
        except RecursionError as error:
            param = self._task.named("messages")
            raise InvalidRequest("the messages or tools are nested too deeply", param=param) from error
        except InvalidRequest as error:
            error.param = error.param and self._task.named(error.param)
            raise
        return self._control.reveal(text)

    def _beside(self, accepts: Accepts) -> tuple[list[Any] | None, list[Any] | None, str]:
        """Tools and documents for the template, and in words what of them it does not print."""
        tools: list[Any] = [tool.definition for tool in self._task.tools.shown]
        documents, words = self._task.documents, []
        ends_with_user = self._task.messages[-1].get("role") == "user"
        if tools and not (accepts.tools and (accepts.tools_before_answers or ends_with_user)):
            words.append(tool_prompt(tools, self._form))
            tools = []
        if not accepts.nested_tools:
            tools = [with_schemas(tool) for tool in tools]
        if not accepts.bare_tools:
            tools = [with_descriptions(tool) for tool in tools]
        if documents and "text" not in accepts.documents:
            words.append(document_prompt(documents))
            documents = None
        elif documents:
            documents = [with_fields_in_text(document, accepts.documents) for document in documents]
        return tools or ([] if accepts.empty_tools else None), documents, "\n\n".join(words)


def _common_length(a: str, b: str) -> int:
    """How many characters both begin with: found by halving, as comparing slices is faster than characters."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[low:middle], low) else (low, middle - 1)
    return low


def _template_variables(task: ChatTask) -> dict[str, Any]:
    """What the template may read beside the conversation; ``variables`` win over OpenAI's fields."""
    given = dict(task.variables)
    if reserved := _RESERVED_VARIABLES & given.keys():
        raise InvalidRequest(
            f"`chat_template_kwargs` must not set {', '.join(sorted(reserved))}", param="chat_template_kwargs"
        )
    effort, thinking = task.reasoning_effort, task.enable_thinking
    if thinking is None and effort is not None:
        thinking = effort not in _NO_REASONING
    fields = {
        "reasoning_effort": effort,
        "verbosity": task.verbosity,
        # one switch under the names that templates know it by
        "enable_thinking": thinking,
        "thinking": thinking,
    }
    return {name: value for name, value in fields.items() if value is not None} | given
