"""The model's chat template: Jinja in the environment that Hugging Face's ``transformers`` gives it.

Templates are written and trained against that environment, so its details are part of the prompt: trimmed blocks,
loop controls, ``{% generation %}`` (which marks the assistant's text for training and renders as its body), a
``tojson`` that neither sorts nor escapes for HTML, ``raise_exception`` and ``strftime_now``. The filter ``from_json``
is added for templates that parse tool arguments themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamafast.errors import ConfigError, InvalidRequest

# A template may quote what the client sent, at any length.
_MAX_QUOTED = 500


class ChatTemplate:
    """A compiled template with the model's own BOS and EOS texts; ``render`` may be called from any thread."""

    def __init__(self, source: str, bos_text: str, eos_text: str) -> None:
        """Compile ``source``. Raises ConfigError when it is not a valid template."""
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ConfigError(f"the chat template does not compile: {error}") from error
        self._texts = {"bos_token": bos_text, "eos_token": eos_text}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text. Raises InvalidRequest when the template refuses or cannot take ``messages``.

        ``kwargs`` are further variables; they cannot replace those named here nor the BOS and EOS texts. A template
        is a program that runs on the client's values, so whatever it raises is about those values.
        """
        variables = {
            **kwargs,
            **self._texts,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except RecursionError as error:
            raise InvalidRequest("the chat template ran out of stack on these messages", param="messages") from error
        except Exception as error:
            reason = str(error)[:_MAX_QUOTED] or type(error).__name__
            raise InvalidRequest(f"the chat template refused the messages: {reason}", param="messages") from error


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: renders its body, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters.update(tojson=_tojson, from_json=_from_json)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_ENVIRONMENT = _environment()
