"""A chat request's conversation as text: what its template reads, and where later conversations may part from it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol

from llamafast.chat.format import ChatFormat
from llamafast.chat.prompt.accepts import Accepts
from llamafast.chat.prompt.generic_tools import (
    document_prompt,
    tool_prompt,
    with_descriptions,
    with_fields_in_text,
    with_schemas,
)
from llamafast.chat.prompt.messages import normalise_messages
from llamafast.chat.prompt.printed import check_printed
from llamafast.chat.tools import ToolChoice, choose_tools, read_functions, read_tools
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


class ConversationOptions(Protocol):
    """What of a request decides the text of its prompt; None is the default."""

    messages: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | str | None
    documents: list[dict[str, Any]] | None
    enable_thinking: bool | None
    reasoning_effort: str | None
    verbosity: str | None
    tools: list[Any] | None
    tool_choice: str | dict[str, Any] | None
    functions: list[Any] | None
    function_call: str | dict[str, Any] | None


class Conversation:
    """A chat request's conversation as its template renders it.

    ``text`` has ``chat.prompt.control``'s marks, ``prompt`` is what a reader should see; ``choice`` is what the model
    may do with the request's tools.

    Raises InvalidRequest or UnsupportedParameter, and what ``check_size`` raises of the prompt's length in characters.
    """

    def __init__(
        self, request: ConversationOptions, chat: ChatFormat, *, check_size: Callable[[int], None] | None = None
    ) -> None:
        self._request = request
        self._control = chat.control
        self.choice = _tool_choice(request)
        self._template = chat.template(self.choice.shown)
        self._form = chat.written_calls
        continued = request.continue_final_message or False
        if continued and request.add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` and `add_generation_prompt` exclude each other",
                param="continue_final_message",
            )
        self.text = self._render(
            request.messages,
            add_generation_prompt=not continued and request.add_generation_prompt is not False,
            continue_final_message=continued,
        )
        self.prompt = chat.control.unmark(self.text)
        if check_size is not None:  # before more is read of what is too long
            check_size(len(self.prompt))
        check_printed(self.prompt, request.messages, self.choice.shown, request.documents)

    def checkpoints(self, tokens: array[int], tokenizer: Tokenizer) -> tuple[int, ...]:
        """How many of the text's ``tokens`` a conversation shares that has only the system prompt and the tools in
        common, and one whose last user turn is another: both up to the last control token before they part.
        """
        roles = [message.get("role") for message in self._request.messages]
        first = next((i for i, role in enumerate(roles) if role not in _SYSTEM_ROLES), None)
        last = max((i for i, role in enumerate(roles) if role == "user"), default=None)
        shared = [self._shared(i) for i in {first, last} if i is not None]
        lengths = self._control.certain_lengths(self.text, shared, tokens, tokenizer)
        return tuple(sorted({n for n in lengths if n}))

    def _shared(self, n_messages: int) -> int:
        """How many characters of the text a conversation shares that goes on differently after so many messages."""
        other = [*self._request.messages[:n_messages], {"role": "user", "content": _OTHER_TEXT}]
        try:
            return _common_length(self.text, self._render(other, add_generation_prompt=False))
        except InvalidRequest:
            # what the template refuses never comes
            return 0

    def _render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool | str = False,
    ) -> str:
        accepts = self._template.accepts
        try:
            tools, documents, preface = self._beside(accepts)
            given = normalise_messages(messages, accepts, form=self._form, preface=preface)
        except RecursionError as error:
            raise InvalidRequest("the messages or tools are nested too deeply", param="messages") from error
        text = self._template.render(
            given,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **{"documents": documents, **_template_variables(self._request)},
        )
        return self._control.reveal(text)

    def _beside(self, accepts: Accepts) -> tuple[list[Any] | None, list[Any] | None, str]:
        """Tools and documents for the template, and in words what of them it does not print."""
        tools: list[Any] = [tool.definition for tool in self.choice.shown]
        documents, words = self._request.documents, []
        ends_with_user = self._request.messages[-1].get("role") == "user"
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


def _tool_choice(request: ConversationOptions) -> ToolChoice:
    if request.functions and request.tools:
        raise InvalidRequest("`functions` is the old form of `tools`: send one of them", param="functions")
    tools = read_tools(request.tools) or read_functions(request.functions)
    if request.functions:
        return choose_tools(tools, request.function_call, "function_call")
    return choose_tools(tools, request.tool_choice)


def _template_variables(request: ConversationOptions) -> dict[str, Any]:
    """What the template may read beside the conversation; ``chat_template_kwargs`` wins over OpenAI's fields."""
    given = request.chat_template_kwargs or {}
    if reserved := _RESERVED_VARIABLES & given.keys():
        raise InvalidRequest(
            f"`chat_template_kwargs` must not set {', '.join(sorted(reserved))}", param="chat_template_kwargs"
        )
    effort, thinking = request.reasoning_effort, request.enable_thinking
    if thinking is None and effort is not None:
        thinking = effort not in _NO_REASONING
    fields = {
        "reasoning_effort": effort,
        "verbosity": request.verbosity,
        # one switch under the names that templates know it by
        "enable_thinking": thinking,
        "thinking": thinking,
    }
    return {name: value for name, value in fields.items() if value is not None} | given
