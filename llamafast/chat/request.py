"""What a client asks of a model, in no endpoint's words: every endpoint that generates text fills one of these tasks.

Ranges that need no knowledge of the model have been checked by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamafast.chat.tools import ToolChoice
from llamafast.engine.media import MediaSource, Medium
from llamafast.engine.types import OutputOptions

# A message as chat templates know it: role, content, tool_calls and whatever else they read.
Message = dict[str, Any]
Prompt = str | list[str | int | list[int]]

NO_TOOLS = ToolChoice((), (), False)

# The texts of a message that is put together of many turns: lists of pieces meanwhile, as who adds to a text copies it.
_PIECED = ("content", "reasoning_content")

# The names under which a message may have its reasoning: each template reads one of them.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Task(OutputOptions, frozen=True, kw_only=True):
    """What any request for text may ask for.

    ``sampling`` is what was said of the fields of SamplingParams, by their names; ``constraints`` what was said of the
    answer's form, by the names of OpenAI, llama-server and vLLM (``chat.grammar.requested``). With ``max_tokens`` 0 the
    prompt is computed and nothing generated. Of a prompt the last ``truncated`` tokens count (None: all; -1: as many as
    fit with the output behind them). ``top_logprobs``: how many alternatives come with each token's log probability;
    None: nobody asked for those; ``prompt_logprobs`` are those of the prompt's tokens. ``priority``, ``cache_salt``,
    ``cache_prompt``, ``model`` and ``lora`` are the Plan's.

    ``names`` are the client's own, by the names in chat completions, for fields that it calls otherwise: errors say
    these.
    """

    sampling: Mapping[str, Any] = {}
    constraints: Mapping[str, Any] = {}
    n: int = 1
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    skip_special_tokens: bool = True
    truncated: int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    cache_prompt: bool = True
    model: str = ""
    lora: tuple[tuple[int, float], ...] = ()
    names: Mapping[str, str] = {}

    def named(self, path: str) -> str:
        """What the client calls ``path``, a field or a place in one: where the field has another name, that name alone,
        as what is in it may be counted otherwise there."""
        return self.names.get(path) or self.names.get(path.partition("[")[0], path)


class CompletionTask(Task, frozen=True, kw_only=True):
    """Texts to go on from, as they stand. For each ``best_of`` choices are made, of which the best ``n`` are wanted;
    with ``echo`` the prompts are part of the answer. A text begins with BOS where the model wants one, unless
    ``adds_special`` is false."""

    prompt: Prompt
    best_of: int | None = None
    echo: bool = False
    adds_special: bool = True


class ChatTask(Task, frozen=True, kw_only=True):
    """A conversation to be answered by the model's chat template.

    Of ``tools`` the model is shown some and may call some. Without ``parallel`` tool calls a reply ends with the first,
    None allows several where calls are not forced. ``add_generation_prompt`` (default true) and
    ``continue_final_message`` are those of ``transformers``, ``variables`` more that the template may read.
    Reasoning has at most ``reasoning_budget`` tokens, with 0 there is none.
    Without ``parses_calls`` calls are content as the model wrote them.
    ``split_reasoning`` tells reasoning apart from content, and with ``stops_content_only`` no ``stop`` string is looked
    for outside of that. Behind the prompt ``room`` tokens have to fit. ``media`` are those whose words are in
    ``messages``, in order, and ``sources`` what the client sent of them. The answer may repeat the text of
    ``prediction``.
    """

    messages: list[Message]
    media: Sequence[Medium] = ()
    sources: Sequence[MediaSource] = ()
    tools: ToolChoice = NO_TOOLS
    parallel: bool | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | str = False
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    reasoning_budget: int | None = None
    verbosity: str | None = None
    variables: Mapping[str, Any] = {}
    split_reasoning: bool = True
    parses_calls: bool = True
    stops_content_only: bool = False
    room: int = 0
    prediction: str = ""

    @property
    def continued_thoughts(self) -> str:
        """What the prompt ends with where the thoughts of the last message are continued."""
        if self.continue_final_message not in REASONING_FIELDS:
            return ""
        return next((text for name in REASONING_FIELDS if isinstance(text := self.messages[-1].get(name), str)), "")


def of_pieces(message: Message) -> Message:
    """``message`` whose texts are in pieces, as a template takes it."""
    return message | {name: "".join(message[name]) for name in _PIECED if name in message}
