"""A request for a message → the task that becomes its Plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llamafast.api.delivery import rows_size, run_sized
from llamafast.api.hidden_tools import warn_of_hidden
from llamafast.api.messages.blocks import messages_of
from llamafast.api.messages.schema import CountTokensRequest
from llamafast.api.messages.tools import ToolTable, parallel_of
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.requested import SCHEMA
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.request import ChatTask, Message
from llamafast.engine.media import MediaLoader, MediaSource, Medium
from llamafast.engine.types import EnginePort, Tenant
from llamafast.errors import InvalidRequest, ThreadUnsupported, UnsupportedParameter

# The fields of a request by the names they have in chat completions, where these differ or what is in them does.
_NAMES = {
    "messages": "messages",
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "enable_thinking": "thinking",
    "response_format": "output_config.format",
    SCHEMA: "output_config.format.schema",
}
_EFFORTS = {"xhigh": "high", "max": "high"}


class PlannedMessage(NamedTuple):
    """A message that is about to be generated; the kinds of tools in ``hidden`` the model is not shown."""

    plan: ChatPlan
    hidden: frozenset[str]

    @property
    def n_prompt(self) -> int:
        """The prompt's tokens."""
        return sum(map(len, self.plan.plan.prompts))


class Said(NamedTuple):
    """A request's conversation as chat messages, what tools there are, and its media, which have words in messages."""

    messages: list[Message]
    tools: ToolTable
    sources: Sequence[MediaSource]


class MessagePlanner:
    """Plans messages; ``media`` is where their images come from."""

    def __init__(self, engine: EnginePort, chat: ChatFormat, media: MediaLoader | None) -> None:
        self._engine = engine
        self._chat = chat
        self._media = media

    async def planned(
        self, request: CountTokensRequest, n_bytes: int, tenant: Tenant, *, only_counted: bool = False
    ) -> PlannedMessage:
        """All that can be refused before the engine is asked is refused here. ``n_bytes`` is the request's size; a
        prompt whose tokens are ``only_counted`` need not fit.

        Raises InvalidRequest, UnsupportedParameter or ContextLengthExceeded.
        """
        said = await run_sized(n_bytes, self._said, request)
        media = await self._media.load(said.sources, tenant.salt) if said.sources and self._media is not None else []
        return await run_sized(n_bytes + rows_size(media), self._plan, request, said, media, only_counted)

    def _said(self, request: CountTokensRequest) -> Said:
        try:
            return self._read(request)
        except RecursionError as error:
            raise InvalidRequest("the request is nested too deeply") from error

    def _read(self, request: CountTokensRequest) -> Said:
        _check_kept_elsewhere(request)
        tools = ToolTable(request.tools)
        for kind in tools.hidden:
            warn_of_hidden(kind)
        media = self._chat.media_parts(self._engine.info.modalities)
        template = self._chat.template(tools.choose(request.tool_choice).shown)
        messages = messages_of(
            request.messages,
            request.system,
            tools,
            media,
            sees="image" in self._engine.info.modalities,
            turns_after_results=template.accepts.user_after_results,
        )
        if not messages:
            raise InvalidRequest("`messages` says nothing", param="messages")
        return Said(messages, tools, media.sources)

    def _plan(
        self, request: CountTokensRequest, said: Said, media: Sequence[Medium], only_counted: bool
    ) -> PlannedMessage:
        fields = request.task_fields() | {"stop": request.stop_sequences or ()}
        if request.format is not None:
            schema = {"name": "output", "schema": request.format.schema, "strict": True}
            fields["constraints"]["response_format"] = {"type": "json_schema", "json_schema": schema}
        continued = _continued(said.messages)
        effort = request.output_config and request.output_config.effort
        task = ChatTask(
            **fields,
            names=_NAMES,
            messages=said.messages,
            media=media,
            sources=said.sources,
            max_tokens=request.max_tokens,
            tools=said.tools.choose(request.tool_choice),
            parallel=parallel_of(request.tool_choice),
            add_generation_prompt=not continued,
            continue_final_message=continued,
            reasoning_effort=_EFFORTS.get(effort, effort) if effort else None,
            enable_thinking=None if request.thinking is None else request.thinking.type != "disabled",
            reasoning_budget=None if request.thinking is None else request.thinking.budget_tokens,
            variables=request.chat_template_kwargs or {},
            stops_content_only=True,
        )
        engine = self._engine
        plan = plan_chat(task, self._chat, engine.tokenizer, engine.info, only_counted=only_counted)
        return PlannedMessage(plan, frozenset(said.tools.hidden))


def _continued(messages: Sequence[Message]) -> bool | str:
    """What ``continue_final_message`` is, for a conversation that ends with the beginning of the answer. Raises
    InvalidRequest where that is a call."""
    last: dict[str, Any] = messages[-1]
    if last["role"] != "assistant":
        return False
    if "tool_calls" in last:
        raise InvalidRequest("the last of `messages` calls tools: their results have to follow", param="messages")
    return True if last["content"] else "reasoning_content"


def _check_kept_elsewhere(request: CountTokensRequest) -> None:
    """Refuse what rests on something that is kept at Anthropic."""
    if request.thread is not None:
        raise ThreadUnsupported("`thread`: no conversation is kept here; send all of it", param="thread")
    container = request.container
    if isinstance(container, dict) and container.get("skills"):
        raise UnsupportedParameter("`container.skills`: no skills are kept here", param="container.skills")
