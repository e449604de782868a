"""The model's chat template: Jinja in the environment that Hugging Face's ``transformers`` gives it.

Templates are written and trained against that environment, so its details are part of the prompt: trimmed blocks,
loop controls, ``{% generation %}`` (which marks the assistant's text for training and renders as its body), a
``tojson`` that neither sorts nor escapes for HTML, ``raise_exception`` and ``strftime_now``. Two things that public
templates need are allowed beside it: the filter ``from_json`` for tool arguments, and methods that change a list, as
every value a template sees is a copy of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace

from llamafast.chat.prompt.accepts import Accepts, probe
from llamafast.chat.prompt.control import MARKS, NO_CONTROL_TOKENS, ControlTokens
from llamafast.chat.request import REASONING_FIELDS
from llamafast.errors import ConfigError, InvalidRequest

# A template may quote what the client sent, at any length.
_MAX_QUOTED = 500

# Behind the text that is to be continued. Its last character tells whether the template trims what it prints.
_TAG = "\ufdd2 "

# Templates that a config may have by their names. ChatML is what llama-server gives to models that have none.
NAMED = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
}

_NOT_ASCII = re.compile(f"[^\0-\x7f{MARKS}]+")


class ChatTemplate:
    """A compiled template with the model's own BOS and EOS texts; ``render`` may be called from any thread."""

    def __init__(self, source: str, bos_text: str, eos_text: str, control: ControlTokens = NO_CONTROL_TOKENS) -> None:
        """Compile ``source``. Raises ConfigError when it is not a valid template, which does not say whose it is."""
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"does not compile in line {error.lineno}: {error.message}") from error
        except SyntaxError as error:  # of the Python that Jinja has made of it, whose lines are others
            raise ConfigError(f"does not compile: {error.msg}") from error
        except (TemplateError, RecursionError, ValueError) as error:
            raise ConfigError(f"does not compile: {error}") from error
        self.source = source
        self._control = control
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}

    @cached_property
    def reads(self) -> frozenset[str]:
        """The variables that it has no values of its own for."""
        return frozenset(find_undeclared_variables(_ENVIRONMENT.parse(self.source)))

    @cached_property
    def accepts(self) -> Accepts:
        """Which forms of messages this template renders."""
        return probe(self.source, self.render)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text, control tokens in what the client wrote marked as ``chat.prompt.control`` says.

        ``continue_final_message`` (true: the content, or the name of a field) ends the text where that text of the
        last message ends. ``kwargs`` are further variables; they cannot replace those named here nor the BOS and EOS
        texts. A template is a program that runs on the client's values, so whatever it raises is about those values:
        InvalidRequest.
        """
        given = {"messages": [_alias_reasoning(message) for message in messages], "tools": tools}
        variables = self._control.mark({**kwargs, "documents": documents, **given})
        variables |= {**self._texts, "add_generation_prompt": add_generation_prompt}
        continued = ""
        if continue_final_message:
            field = continue_final_message if isinstance(continue_final_message, str) else "content"
            continued = self._tag(variables["messages"][-1], field)
        try:
            text = self._template.render(variables)
        except RecursionError as error:
            raise InvalidRequest("the chat template ran out of stack on these messages", param="messages") from error
        except Exception as error:
            reason = self._control.unmark(self._control.reveal(str(error)))[:_MAX_QUOTED] or type(error).__name__
            told = f"the chat template refused the messages: {reason}"
            raise InvalidRequest(told, param="messages", told=reason) from error
        return _cut_at_tag(text, continued) if continue_final_message else text

    def _tag(self, message: dict[str, Any], field: str) -> str:
        """Append the tag to the text in ``field`` of ``message``; that text. Raises InvalidRequest."""
        text = message.get(field)
        names = [field]
        if field in REASONING_FIELDS:
            # one text under several names, and each template reads one of them
            names = [name for name in REASONING_FIELDS if message.get(name) == text]
        if isinstance(text, list):
            part = next((part for part in reversed(text) if isinstance(part, dict) and "text" in part), None)
            message, names, text = part or {}, ["text"], part and part["text"]
        if not isinstance(text, str):
            raise _not_continued(f"the last message has no text in {field[:64]!r}")
        if field != "content" and not any(name in self.source for name in names):
            raise _not_continued(f"the chat template does not read {field[:64]!r}")
        message.update(dict.fromkeys(names, text + _TAG))
        return text


def _cut_at_tag(text: str, continued: str) -> str:
    at = text.rfind(_TAG[0])
    if at < 0 or continued.strip() not in text:
        raise _not_continued("the chat template does not print the last message as it is")
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()


def _not_continued(reason: str) -> InvalidRequest:
    return InvalidRequest(f"`continue_final_message`: {reason}", param="continue_final_message")


def _alias_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Reasoning under every name that templates know it by, as ``transformers`` has it."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: renders its body, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PublicNamespace(Namespace):
    """Jinja's ``namespace`` without names that begin with an underscore, as ``transformers`` has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore: {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # marks of control tokens must stay what they are
    return _NOT_ASCII.sub(lambda run: json.dumps(run[0])[1:-1], text) if ensure_ascii else text


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters.update(tojson=_tojson, from_json=_from_json)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_PublicNamespace)
    return environment


_ENVIRONMENT = _environment()
