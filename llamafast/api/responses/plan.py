"""A request for a response and the conversation it continues → the task that becomes its Plan, and the Response."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.hidden_tools import warn_of_hidden
from llamafast.api.logprobs import TokenNames
from llamafast.api.media_texts import encode_whole, owned
from llamafast.api.responses.items import Item, in_item, messages_of
from llamafast.api.responses.schema import ReasoningOptions, Response, ResponsesRequest, TextOptions
from llamafast.api.responses.store import History
from llamafast.api.responses.tools import ToolTable
from llamafast.api.responses.writer import ResponseWriter
from llamafast.api.sse import encode
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.requested import SCHEMA
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.request import ChatTask, Message
from llamafast.engine.media import MediaSource, Medium
from llamafast.engine.types import ANYBODY, EnginePort, OutputOptions, Tenant
from llamafast.errors import ContextLengthExceeded, InvalidRequest

# The fields of a response's request by the names they have in chat completions.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "response_format": "text.format",
    SCHEMA: "text.format.schema",
}


def no_input(request: ResponsesRequest) -> InvalidRequest:
    """What is wrong with a request that says nothing."""
    told = "`input` is required" if request.input is None else "`input` must not be empty"
    return InvalidRequest(told, param="input")


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
        items = [*self.before, *(in_item(item, owned) for item in self.input), *answer]
        return History(items, sum(len(encode_whole(item)) for item in items))


class Said(NamedTuple):
    """A request's conversation as chat messages, what tools there are, and its media, which have words in messages."""

    messages: list[Message]
    tools: ToolTable
    sources: Sequence[MediaSource]


class ResponsePlanner:
    """Plans responses: knows no transport, keeps nothing and starts nothing. Thread-safe."""

    def __init__(self, engine: EnginePort, chat: ChatFormat) -> None:
        self._engine = engine
        self._chat = chat

    def said(self, request: ResponsesRequest, before: History, given: list[Item]) -> Said:
        """The first half of ``plan``, after which media are fetched. ``before`` is the conversation of
        ``previous_response_id``, ``given`` the items of the request itself, each with an id. Raises as that."""
        items = [*before.items, *given]
        tools = ToolTable(request.tools or (), items, len(before.items))
        for kind in tools.hidden:
            warn_of_hidden(kind)
        media = self._chat.media_parts(self._engine.info.modalities)
        messages = messages_of(items, request.instructions, len(before.items), media)
        if not messages:
            raise no_input(request)
        return Said(messages, tools, media.sources)

    def plan(
        self,
        request: ResponsesRequest,
        before: History,
        given: list[Item],
        n_bytes: int,
        said: Said,
        media: Sequence[Medium] = (),
        *,
        prefill: bool = False,
        stream_id: str | UnsetType = UNSET,
        room: int = 0,
    ) -> PlannedResponse:
        """All that can be refused is refused here or in ``said``, which has the same arguments. ``n_bytes`` is the
        request's size, ``media`` those that were ``said``.

        With ``prefill`` the prompt ends where the next turn will go on, and nothing is generated. The prompt leaves
        ``room`` for so many tokens. Raises InvalidRequest, UnsupportedParameter or ContextLengthExceeded.
        """
        tools = said.tools
        task = self._task(request, said, media, prefill=prefill, room=room)
        plan = self._planned(task, request.truncation == "auto")
        response = self._response(request, plan)
        names = None if task.top_logprobs is None else TokenNames(request, self._engine.tokenizer)
        writer = ResponseWriter(response, tools, stream_id, names, n_bytes)
        size = before.n_bytes + n_bytes
        return PlannedResponse(before.items, given, plan, writer, prefill, size, frozenset(tools.hidden))

    def _task(
        self,
        request: ResponsesRequest,
        said: Said,
        media: Sequence[Medium],
        *,
        prefill: bool,
        room: int,
    ) -> ChatTask:
        choice = said.tools.choose(request.tool_choice)
        text = request.text or TextOptions()
        fields = request.task_fields()
        if prefill:
            # no output is wanted that they could be about
            fields = {name: value for name, value in fields.items() if name not in OutputOptions.__struct_fields__}
        elif text.format is not None:
            fields["constraints"]["response_format"] = _response_format(text.format)
        wants_logprobs = request.wants_logprobs and not prefill
        return ChatTask(
            **fields,
            names=_NAMES,
            messages=said.messages,
            media=media,
            sources=said.sources,
            max_tokens=1 if prefill else request.max_output_tokens,
            top_logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
            tools=choice,
            parallel=request.parallel_tool_calls,
            add_generation_prompt=not prefill,
            reasoning_effort=request.reasoning.effort if request.reasoning else None,
            reasoning_budget=_reasoning_budget(request),
            verbosity=text.verbosity,
            variables=request.chat_template_kwargs or {},
            room=room,
        )

    def _planned(self, task: ChatTask, truncates: bool) -> ChatPlan:
        """The Plan of ``task``; where it ``truncates``, of as many of the newest messages as fit."""

        def plan(n_dropped: int) -> ChatPlan:
            newest = msgspec.structs.replace(task, messages=_without_oldest(task.messages, n_dropped))
            return plan_chat(newest, self._chat, self._engine.tokenizer, self._engine.info)

        try:
            return plan(0)
        except ContextLengthExceeded:
            if not truncates:
                raise
        return _first_that_fits(plan, _n_turns(task.messages))

    def _response(self, request: ResponsesRequest, plan: ChatPlan) -> Response:
        sampling, text = plan.plan.sampling, request.text or TextOptions()
        return Response(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            model=request.model or self._engine.info.id,
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


def _reasoning_budget(request: ResponsesRequest) -> int | None:
    n_tokens = request.reasoning and request.reasoning.max_tokens
    return n_tokens if isinstance(n_tokens, int) and n_tokens >= 0 else None


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    """``text.format`` as chat completions spell it."""
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}


def _turn_starts(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "user"]


def _n_turns(messages: Sequence[Message]) -> int:
    return len(_turn_starts(messages))


def _without_oldest(messages: list[Message], n_turns: int) -> list[Message]:
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
