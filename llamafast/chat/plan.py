"""Request → Plan: the only place where one is made.

Requests reach this room as the shapes below, which ``api.schema`` fills; ranges that need no model knowledge have
been checked by then.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from msgspec.structs import replace

from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.asked import Ask, asked_of_chat, asked_of_completion
from llamafast.chat.grammar.requested import ConstraintOptions
from llamafast.chat.prompt.conversation import Conversation, ConversationOptions
from llamafast.chat.reply.deltas import NewParser, PlainReply
from llamafast.chat.reply.reader import Reply
from llamafast.chat.sampling import SamplingOptions, read_sampling
from llamafast.chat.tools import Tool
from llamafast.engine.types import ModelInfo, Plan, Tokenizer
from llamafast.errors import ContextLengthExceeded, DoesNotGenerate, InvalidRequest, Untokenizable

MAX_TOTAL_CHOICES = 2048
MAX_STOP_BYTES = 1024

Prompt = str | list[str | int | list[int]]


class Options(SamplingOptions, ConstraintOptions, Protocol):
    """What a Plan takes from every request; None is the default."""

    n: int | None
    max_tokens: int | None
    stop: str | list[str] | None
    ignore_eos: bool | None
    min_tokens: int | None
    stop_token_ids: list[int] | None
    include_stop_str_in_output: bool | None
    priority: int | None
    cache_salt: str | None
    skip_special_tokens: bool | None


class CompletionOptions(Options, Protocol):
    prompt: Prompt
    echo: bool | None
    best_of: int | None
    logprobs: int | None


class ChatOptions(Options, ConversationOptions, Protocol):
    logprobs: bool | None
    top_logprobs: int | None
    max_completion_tokens: int | None
    reasoning_format: Literal["none", "auto", "deepseek"] | None
    parallel_tool_calls: bool | None


class ChatPlan(NamedTuple):
    """A Plan, what is asked of the reply (compiled apart, to be the Plan's matcher), and how to read what comes of it.
    Without ``parallel`` a reply ends with its first tool call."""

    plan: Plan
    new_parser: NewParser
    tools: tuple[Tool, ...]
    parallel: bool
    ask: Ask | None = None

    def replies(self) -> list[Reply]:
        """A fresh reader for each choice, by index."""
        return [Reply(self.new_parser(), parallel=self.parallel) for _ in range(self.plan.n)]


def plan_completion(request: CompletionOptions, tokenizer: Tokenizer, info: ModelInfo) -> tuple[Plan, Ask | None]:
    """Tokenise the prompts as they stand. What is asked of the text is compiled apart, to be the Plan's matcher.

    Raises InvalidRequest or ContextLengthExceeded.
    """
    _check_generates(info)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("`max_tokens` of 0 needs `echo`", param="max_tokens")
    prompts = split_prompts(request.prompt, "prompt")
    n = request.best_of or request.n or 1
    if n < (request.n or 1):
        raise InvalidRequest("`best_of` must not be smaller than `n`", param="best_of")
    if len(prompts) * n > MAX_TOTAL_CHOICES:
        raise InvalidRequest(
            f"the number of prompts times `n` must be at most {MAX_TOTAL_CHOICES}", param="n" if n > 1 else "prompt"
        )
    paths = ["prompt"] if len(prompts) == 1 else [f"prompt[{i}]" for i in range(len(prompts))]
    tokens = tuple(_prompt_tokens(prompt, path, tokenizer, info) for prompt, path in zip(prompts, paths, strict=True))
    ask = asked_of_completion(request)
    plan = _plan(request, tokens, request.max_tokens, ask is not None, tokenizer, info)
    ranked = n > (request.n or 1)
    plan = replace(
        plan,
        n=n,
        top_logprobs=0 if ranked and request.logprobs is None else request.logprobs,
        prompt_logprobs=bool(request.echo) and request.logprobs is not None,
    )
    return plan, ask


def echo_texts(request: CompletionOptions, plan: Plan, tokenizer: Tokenizer) -> list[str]:
    """The text of each prompt of ``plan``: as the client wrote it, or detokenised where it sent token ids."""
    return [
        prompt if isinstance(prompt, str) else tokenizer.detokenize(tokens)
        for prompt, tokens in zip(split_prompts(request.prompt, "prompt"), plan.prompts, strict=True)
    ]


def plan_chat(request: ChatOptions, chat: ChatFormat, tokenizer: Tokenizer, info: ModelInfo) -> ChatPlan:
    """Render the conversation and tokenise the result, BOS being the template's affair.

    Raises InvalidRequest, UnsupportedParameter or ContextLengthExceeded.
    """
    _check_generates(info)
    conversation = Conversation(request, chat, check_size=lambda n_chars: _check_size(n_chars, "messages", info))
    text, prompt, choice = conversation.text, conversation.prompt, conversation.choice
    with Untokenizable.named("messages"):
        tokens = _checked_tokens(chat.control.tokenize(text, tokenizer), "messages", info)
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs`", param="top_logprobs")
    ask = asked_of_chat(
        request,
        chat.letters,
        choice.callable,
        forced=choice.forced,
        # models that are forced to call often do not know when to end: several calls only where that is asked for
        parallel=bool(request.parallel_tool_calls),
        begun=chat.begun_reasoning(prompt),
    )
    plan = _plan(request, (tokens,), max_tokens, ask is not None, tokenizer, info)
    if not info.cuts_anywhere:
        plan = replace(plan, checkpoints=conversation.checkpoints(tokens, tokenizer))
    if request.logprobs:
        plan = replace(plan, top_logprobs=request.top_logprobs or 0)
    new_parser: NewParser = PlainReply
    if ask is None or choice.callable or chat.dialect.reasons:  # else a text that follows a grammar is all content
        new_parser = chat.parser(prompt, choice.callable, split_reasoning=request.reasoning_format != "none")
    if new_parser is not PlainReply:  # which control tokens are marks is known of a dialect, not of a declaration
        hides = plan.skip_special_tokens and chat.declared is None
        plan = replace(plan, skip_special_tokens=hides, preserved_tokens=chat.preserved_tokens)
    parallel = request.parallel_tool_calls is not False and not request.functions
    return ChatPlan(plan, new_parser, choice.callable, parallel, ask)


def _check_generates(info: ModelInfo) -> None:
    """Before anything else: a template or grammar that is missing would only hide what is wrong."""
    if not info.generates:
        raise DoesNotGenerate(ranks=info.ranks)


def _plan(
    options: Options,
    prompts: tuple[array[int], ...],
    max_tokens: int | None,
    constrained: bool,
    tokenizer: Tokenizer,
    info: ModelInfo,
) -> Plan:
    return Plan(
        prompts=prompts,
        sampling=read_sampling(options, tokenizer, info),
        n=options.n or 1,
        # No output outgrows the context, so a larger number means the same and a huge one never leaves this room.
        max_tokens=None if max_tokens is None else min(max_tokens, info.max_seq_len),
        stop=_stop_strings(options.stop),
        skip_special_tokens=options.skip_special_tokens is not False,
        ignore_eos=bool(options.ignore_eos),
        min_tokens=_min_tokens(options, max_tokens, constrained),
        stop_token_ids=_stop_tokens(options.stop_token_ids, info),
        keep_stop=bool(options.include_stop_str_in_output),
        priority=options.priority or 0,
        cache_salt=options.cache_salt or "",
    )


def _stop_tokens(tokens: Sequence[int] | None, info: ModelInfo) -> tuple[int, ...]:
    if tokens and not 0 <= min(tokens) <= max(tokens) < info.n_vocab:
        raise InvalidRequest(f"`stop_token_ids` has a token id outside 0 to {info.n_vocab - 1}", param="stop_token_ids")
    return tuple(dict.fromkeys(tokens or ()))


def _min_tokens(options: Options, max_tokens: int | None, constrained: bool) -> int:
    least = options.min_tokens or 0
    if max_tokens is not None and least > max_tokens:
        raise InvalidRequest("`min_tokens` must not be larger than `max_tokens`", param="min_tokens")
    if least and constrained:
        raise InvalidRequest(
            "`min_tokens` cannot be combined with a grammar, which decides the end", param="min_tokens"
        )
    return min(least, 2**31 - 1)


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for string in strings:
        if not 1 <= len(string.encode()) <= MAX_STOP_BYTES:
            raise InvalidRequest(f"a `stop` string has 1 to {MAX_STOP_BYTES} bytes of UTF-8", param="stop")
    return tuple(dict.fromkeys(strings))


def split_prompts(prompt: Prompt, field: str) -> list[str | list[int]]:
    """One entry per prompt. Raises InvalidRequest when ``prompt``, given as ``field``, is none of the four forms."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]  # type: ignore[list-item]
    if kinds in ({str}, {list}):
        return prompt  # type: ignore[return-value]
    problem = "must not be empty" if not prompt else "must hold only strings, only token ids or only lists of token ids"
    raise InvalidRequest(f"`{field}` {problem}", param=field)


def _prompt_tokens(prompt: str | list[int], path: str, tokenizer: Tokenizer, info: ModelInfo) -> array[int]:
    if not prompt:
        raise InvalidRequest(f"`{path}` must not be empty", param=path)
    if isinstance(prompt, str):
        _check_size(len(prompt), path, info)
        with Untokenizable.named(path):
            return _checked_tokens(tokenizer.tokenize(prompt, add_special=True, parse_special=True), path, info)
    if len(prompt) > info.max_seq_len:
        raise _too_long(path, f"{len(prompt)} tokens", info)
    return checked_ids(prompt, path, info)


def checked_ids(ids: list[int], path: str, info: ModelInfo) -> array[int]:
    """Raises InvalidRequest for an id outside the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < info.n_vocab:
        raise InvalidRequest(f"`{path}` has a token id outside 0 to {info.n_vocab - 1}", param=path)
    return array("i", ids)


def _check_size(n_chars: int, path: str, info: ModelInfo) -> None:
    """Refuse what cannot fit, before seconds of tokenising would only say by how much."""
    if n_chars > info.max_seq_len * info.longest_piece:
        raise _too_long(path, f"more than {n_chars // info.longest_piece} tokens", info)


def _checked_tokens(tokens: array[int], path: str, info: ModelInfo) -> array[int]:
    if not tokens:
        raise InvalidRequest(f"`{path}` gives no tokens", param=path)
    if len(tokens) > info.max_seq_len:
        raise _too_long(path, f"{len(tokens)} tokens", info)
    return tokens


def _too_long(path: str, size: str, info: ModelInfo) -> ContextLengthExceeded:
    return ContextLengthExceeded(info.max_seq_len, size, param=path)
