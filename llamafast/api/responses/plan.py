"""A request for a response and the conversation it continues → its Plan and the Response it will become."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.decode import check_served
from llamafast.api.logprobs import TokenNames
from llamafast.api.responses.items import Item, messages_of
from llamafast.api.responses.schema import ReasoningOptions, Response, ResponsesRequest, TextOptions
from llamafast.api.responses.store import History
from llamafast.api.responses.tools import ToolTable
from llamafast.api.responses.writer import ResponseWriter
from llamafast.api.schema.fragments import GenerationOptions
from llamafast.api.sse import encode
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.engine.types import ANYBODY, EnginePort, Tenant
from llamafast.errors import ContextLengthExceeded, InvalidRequest, LlamafastError

log = logging.getLogger(__name__)

# chat's names for fields that have others here
_PARAMS = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}


class PlannedResponse(NamedTuple):
    """A response that is about to be generated for ``tenant``: ``before`` and ``input`` are the conversation that it
    answers, ``n_bytes`` its size as JSON, or more; the kinds of tools in ``hidden`` the model is not shown."""

    before: Sequence[Item]
    input: list[Item]
    plan: ChatPlan
    writer: ResponseWriter
    prefill: bool
    n_bytes: int
    hidden: frozenset[str]
    tenant: Tenant = ANYBODY

    @property
    def response(self) -> Response:
        return self.writer.response

    def history(self) -> History:
        """Everything said, the answer included, once there is one."""
        answer = [msgspec.json.decode(encode(item)) for item in self.response.output]
        items = [*self.before, *self.input, *answer]
        return History(items, sum(len(encode(item)) for item in items))


class ResponsePlanner:
    """Plans responses: knows no transport, keeps nothing and starts nothing. Thread-safe."""

    def __init__(self, engine: EnginePort, chat: ChatFormat) -> None:
        self._engine = engine
        self._chat = chat

    def plan(
        self,
        request: ResponsesRequest,
        before: History,
        given: list[Item],
        n_bytes: int,
        *,
        prefill: bool = False,
        stream_id: str | UnsetType = UNSET,
        room: int = 0,
    ) -> PlannedResponse:
        """All that can be refused is refused here. ``before`` is the conversation of ``previous_response_id``,
        ``given`` the items of the request itself, each with an id; ``n_bytes`` is the request's size.

        With ``prefill`` the prompt ends where the next turn will go on, and nothing is generated. The prompt leaves
        ``room`` for so many tokens. Raises InvalidRequest, UnsupportedParameter or ContextLengthExceeded.
        """
        tools = ToolTable(request.tools or (), [*before.items, *given])
        for kind in tools.hidden:
            _warn_of_hidden(kind)
        chat = self._chat_request(request, tools, prefill)
        try:
            check_served(chat)
            plan = self._plan(chat, [*before.items, *given], request, len(before.items), room)
        except ContextLengthExceeded as error:
            raise ContextLengthExceeded(error.limit, error.size, param="input") from error
        except LlamafastError as error:
            name_as_responses_do(error)
            raise
        response = self._response(request, plan)
        names = TokenNames(request, self._engine.tokenizer) if chat.logprobs else None
        writer = ResponseWriter(response, tools, stream_id, names, n_bytes)
        size = before.n_bytes + n_bytes
        return PlannedResponse(before.items, given, plan, writer, prefill, size, frozenset(tools.hidden))

    def _chat_request(self, request: ResponsesRequest, tools: ToolTable, prefill: bool) -> ChatRequest:
        """The same request in the words of chat completions, but for its messages."""
        shared = {name: getattr(request, name) for name in GenerationOptions.__struct_fields__}
        text = request.text or TextOptions()
        if prefill:
            shared["min_tokens"] = None
        shared["response_format"] = None if prefill else _response_format(text.format)
        wants_logprobs = request.wants_logprobs and not prefill
        return ChatRequest(
            **shared,
            messages=[],
            max_completion_tokens=1 if prefill else request.max_output_tokens,
            add_generation_prompt=not prefill,
            tools=tools.functions or None,
            tool_choice=tools.choose(request.tool_choice),
            parallel_tool_calls=request.parallel_tool_calls,
            reasoning_effort=request.reasoning.effort if request.reasoning else None,
            verbosity=text.verbosity,
            logprobs=wants_logprobs,
            top_logprobs=request.top_logprobs if wants_logprobs else None,
            chat_template_kwargs=request.chat_template_kwargs,
        )

    def _plan(
        self, chat: ChatRequest, items: list[Item], request: ResponsesRequest, n_before: int, room: int
    ) -> ChatPlan:
        """The Plan of ``items``; with truncation ``auto``, of as many of the newest ones as fit."""

        def plan(n_dropped: int) -> ChatPlan:
            messages = messages_of(items, request.instructions, n_before)
            if not messages:
                raise InvalidRequest("`input` must not be empty", param="input")
            chat.messages = _without_oldest(messages, n_dropped)
            planned = plan_chat(chat, self._chat, self._engine.tokenizer, self._engine.info)
            if room and len(planned.plan.prompts[0]) + room > self._engine.info.max_seq_len:
                size = f"{len(planned.plan.prompts[0])} tokens, behind which {room} have to fit"
                raise ContextLengthExceeded(self._engine.info.max_seq_len, size, param="input")
            return planned

        try:
            return plan(0)
        except ContextLengthExceeded:
            if request.truncation != "auto":
                raise
        return _first_that_fits(plan, _n_turns(messages_of(items, request.instructions, n_before)))

    def _response(self, request: ResponsesRequest, plan: ChatPlan) -> Response:
        sampling, text = plan.plan.sampling, request.text or TextOptions()
        return Response(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            model=self._engine.info.id,
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            previous_response_id=request.previous_response_id,
            prompt_cache_key=request.prompt_cache_key,
            prompt_cache_retention=request.prompt_cache_retention,
            reasoning=request.reasoning or ReasoningOptions(),
            safety_identifier=request.safety_identifier,
            store=request.store is not False,
            temperature=sampling.temperature,
            text=TextOptions(text.format or {"type": "text"}, text.verbosity or "medium"),
            tool_choice="auto" if request.tool_choice is None else request.tool_choice,
            tools=[_echoed(tool) for tool in request.tools or ()],
            top_logprobs=request.top_logprobs or 0,
            top_p=sampling.top_p,
            truncation=request.truncation or "disabled",
            user=request.user,
            metadata=request.metadata or {},
        )


def _echoed(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool that ``ToolTable`` has checked, as a Response has it: whether a function is strict is said."""
    if tool["type"] == "namespace":
        return {**tool, "tools": [_with_strict(member) for member in tool["tools"]]}
    return _with_strict(tool)


def _with_strict(tool: dict[str, Any]) -> dict[str, Any]:
    return {**tool, "strict": tool.get("strict") is True} if tool["type"] == "function" else tool


def name_as_responses_do(error: LlamafastError) -> None:
    """The field of a ChatRequest that was made here: the client knows it by another name."""
    error.param = _param(error.param)


@lru_cache(128)
def _warn_of_hidden(kind: str) -> None:
    """Once: clients send the same tools with every request."""
    log.warning("tools of type %r do not run here: the model is not shown them", kind)


def _param(param: str | None) -> str | None:
    """The field of a response's request that is ``param`` of a chat's: items and messages are counted differently."""
    if param is not None and param.startswith("messages"):
        return "input"
    return None if param is None else _PARAMS.get(param, param)


def _response_format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    """``text.format`` as chat completions spell it."""
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}


def _turn_starts(messages: Sequence[dict[str, Any]]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "user"]


def _n_turns(messages: Sequence[dict[str, Any]]) -> int:
    return len(_turn_starts(messages))


def _without_oldest(messages: list[dict[str, Any]], n_turns: int) -> list[dict[str, Any]]:
    """Without the oldest ``n_turns`` turns (from one user message to the next); what precedes them all stays."""
    if not n_turns:
        return messages
    starts = _turn_starts(messages)
    return messages[: starts[0]] + messages[starts[n_turns] :]


def _first_that_fits(plan: Callable[[int], ChatPlan], n_turns: int) -> ChatPlan:
    """``plan`` of as few dropped turns as make it fit. Raises ContextLengthExceeded when the newest alone does not."""
    low, high = 1, n_turns - 1
    if high < low:
        return plan(0)
    best = plan(high)
    while low < high:
        middle = (low + high) // 2
        try:
            best = plan(middle)
        except ContextLengthExceeded:
            low = middle + 1
        else:
            high = middle
    return best
