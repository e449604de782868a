"""Task → Plan: the only place where one is made."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.asked import Ask, asked_of_chat, asked_of_completion
from llamafast.chat.infill import InfillTask, fim_ends, infill_tokens
from llamafast.chat.prompt.conversation import Conversation
from llamafast.chat.reply.deltas import NewParser, PlainReply
from llamafast.chat.reply.reader import Reply
from llamafast.chat.request import ChatTask, CompletionTask, Prompt, Task
from llamafast.chat.sampling import read_sampling
from llamafast.chat.tools import Tool
from llamafast.engine.media import MediaRows, MediaSpan
from llamafast.engine.types import ModelInfo, Plan, Tokenizer
from llamafast.errors import ContextLengthExceeded, DoesNotGenerate, InvalidRequest, Untokenizable

MAX_TOTAL_CHOICES = 2048
MAX_STOP_BYTES = 1024
NO_TOKENS = array("i")
_MAX_TOKENS = 2**31 - 1
# Of the context what output of no bound is left by a prompt that is truncated to what fits.
_OUTPUT_SHARE = 4
# Tokens that depend on what stands before a text.
_AT_THE_CUT = 64
# A million characters take about a second, and nobody can stop that.
MAX_CHARACTERS = 1 << 20


class ChatPlan(NamedTuple):
    """A Plan, what is asked of the reply (compiled apart, to be the Plan's matcher), and how to read what comes of it.
    Without ``parallel`` a reply ends with its first tool call; ``content_stops`` end it where its content has them.
    The fields that are ``unread`` are for a template, and the model's does not read them."""

    plan: Plan
    new_parser: NewParser
    tools: tuple[Tool, ...]
    parallel: bool
    ask: Ask | None = None
    content_stops: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def replies(self) -> list[Reply]:
        """A fresh reader for each choice, by index."""
        return [Reply(self.new_parser(), parallel=self.parallel, stops=self.content_stops) for _ in range(self.plan.n)]


def plan_completion(task: CompletionTask, tokenizer: Tokenizer, info: ModelInfo) -> tuple[Plan, Ask | None]:
    """Tokenise the prompts as they stand. What is asked of the text is compiled apart, to be the Plan's matcher.

    Raises InvalidRequest or ContextLengthExceeded.
    """
    _check_generates(info)
    prompts = split_prompts(task.prompt, "prompt")
    n = task.best_of or task.n
    if n < task.n:
        raise InvalidRequest("`best_of` must not be smaller than `n`", param="best_of")
    if len(prompts) * n > MAX_TOTAL_CHOICES:
        raise InvalidRequest(
            f"the number of prompts times `n` must be at most {MAX_TOTAL_CHOICES}", param="n" if n > 1 else "prompt"
        )
    paths = ["prompt"] if len(prompts) == 1 else [f"prompt[{i}]" for i in range(len(prompts))]
    tokens = tuple(
        _prompt_tokens(prompt, path, tokenizer, info, task) for prompt, path in zip(prompts, paths, strict=True)
    )
    ask = asked_of_completion(task)
    ranked = n > task.n
    plan = _plan(
        task,
        tokens,
        tokenizer,
        info,
        n=n,
        constrained=ask is not None,
        top_logprobs=0 if ranked and task.top_logprobs is None else task.top_logprobs,
        prompt_logprobs=task.echo and task.top_logprobs is not None,
    )
    return plan, ask


def plan_infill(task: InfillTask, tokenizer: Tokenizer, info: ModelInfo) -> tuple[Plan, Ask | None]:
    """The same for a text that is filled in. Raises InvalidRequest."""
    _check_generates(info)
    tokens = infill_tokens(task, tokenizer, info)
    ask = asked_of_completion(task)
    plan = _plan(
        task, (tokens,), tokenizer, info, n=task.n, constrained=ask is not None, top_logprobs=task.top_logprobs
    )
    return replace(plan, stop_token_ids=(*plan.stop_token_ids, *fim_ends(info.fim))), ask


def echo_texts(task: CompletionTask, plan: Plan, tokenizer: Tokenizer) -> list[str]:
    """The text of each prompt of ``plan``: as the client wrote it, or detokenised where it sent token ids or was
    truncated."""
    texts: list[str] = []
    for prompt, tokens in zip(split_prompts(task.prompt, "prompt"), plan.prompts, strict=True):
        if isinstance(prompt, str) and task.truncated is None:
            texts.append(prompt)
            continue
        text = tokenizer.detokenize(tokens)
        texts.append(prompt if isinstance(prompt, str) and text.endswith(prompt) else text)
    return texts


def most_characters(info: ModelInfo) -> int:
    """How long a text may be whose tokens need not fit: they are told, counted or truncated."""
    return max(MAX_CHARACTERS, info.max_seq_len * info.longest_piece)


def plan_chat(
    task: ChatTask, chat: ChatFormat, tokenizer: Tokenizer, info: ModelInfo, *, only_counted: bool = False
) -> ChatPlan:
    """Render the conversation and tokenise the result, BOS being the template's affair. A prompt whose tokens are
    ``only_counted`` need not fit.

    Raises InvalidRequest, UnsupportedParameter or ContextLengthExceeded.
    """
    _check_generates(info)
    if task.reasoning_budget == 0 and task.enable_thinking is None:
        task = replace(task, enable_thinking=False)
    named = task.named("messages")
    fits = replace(info, max_seq_len=_MAX_TOKENS) if only_counted else info

    def check_size(n_chars: int) -> None:
        if not only_counted and task.truncated is None:
            check_fits(n_chars, named, info)
        elif n_chars > (most := most_characters(info)):
            raise InvalidRequest(f"`{named}` has {n_chars} characters, at most {most} are tokenised", param=named)

    conversation = Conversation(task, chat, check_size=check_size)
    prompt, tools = conversation.prompt, task.tools.callable if task.parses_calls else ()
    n_rows = sum(chunk.n_rows for medium in task.media for chunk in medium.chunks if isinstance(chunk, MediaRows))
    if n_rows > fits.max_seq_len:
        raise _too_long(named, f"{n_rows} rows of media", info, n_rows)
    with Untokenizable.named(named):
        spliced = conversation.spliced(tokenizer)
        refused = {"truncate_prompt_tokens": task.truncated, "return_token_ids": task.tell_tokens or None}
        for name, asked in (refused | {"prompt_logprobs": task.prompt_logprobs}).items():
            if task.media and asked is not None:
                raise InvalidRequest(f"`{name}` does not go with media", param=name)
        tokens = _checked_tokens(_truncated(spliced.tokens, task, info), named, fits)
    if task.room and len(tokens) + task.room > info.max_seq_len:
        size = f"{len(tokens)} tokens, behind which {task.room} have to fit"
        raise _too_long(named, size, info, len(tokens) + task.room)
    begun = chat.begun_reasoning(prompt, task.continued_thoughts)
    ask = asked_of_chat(task, chat.letters, begun)
    new_parser: NewParser = PlainReply
    if ask is None or tools or chat.dialect.reasons:  # else a text that follows a grammar is all content
        continued = task.continued_thoughts
        new_parser = chat.parser(prompt, tools, split_reasoning=task.split_reasoning, continued=continued)
    # which control tokens are marks is known of a dialect, not of a declaration
    parsed = new_parser is not PlainReply
    marks = chat.preserved_tokens if parsed or not task.parses_calls else ()
    plan = _plan(
        task,
        (tokens,),
        tokenizer,
        info,
        n=task.n,
        constrained=ask is not None,
        top_logprobs=task.top_logprobs,
        hides_control=not parsed or chat.declared is None,
        preserved_tokens=marks,
        checkpoints=() if info.cuts_anywhere or task.truncated else conversation.checkpoints(spliced, tokenizer),
        media=spliced.spans,
        prediction=_prediction(task.prediction, tokenizer, info),
    )
    if task.reasoning_budget is not None:
        thoughts = chat.begun_thoughts(prompt, task.continued_thoughts)
        plan = replace(plan, budget=chat.thoughts.budget(task.reasoning_budget, thoughts))
    content_stops: tuple[str, ...] = ()
    if task.stops_content_only and parsed:
        content_stops, plan = plan.stop, replace(plan, stop=())
    unread = conversation.unread
    return ChatPlan(plan, new_parser, tools, task.parallel is not False, ask, content_stops, unread)


def _check_generates(info: ModelInfo) -> None:
    """Before anything else: a template or grammar that is missing would only hide what is wrong."""
    if not info.generates:
        raise DoesNotGenerate(ranks=info.ranks)


def _plan(
    task: Task,
    prompts: tuple[array[int], ...],
    tokenizer: Tokenizer,
    info: ModelInfo,
    *,
    n: int,
    constrained: bool,
    top_logprobs: int | None,
    prompt_logprobs: bool = False,
    hides_control: bool = True,
    preserved_tokens: tuple[int, ...] = (),
    checkpoints: tuple[int, ...] = (),
    media: tuple[MediaSpan, ...] = (),
    prediction: array[int] = NO_TOKENS,
) -> Plan:
    options = task.output_options() | {"min_tokens": _min_tokens(task, constrained=constrained)}
    return Plan(
        **options,
        prompts=prompts,
        sampling=read_sampling(task.sampling, tokenizer, info),
        n=n,
        # No output outgrows the context, so a larger number means the same and a huge one never leaves this room.
        max_tokens=None if task.max_tokens is None else min(task.max_tokens, info.max_seq_len),
        stop=_stop_strings(task),
        skip_special_tokens=task.skip_special_tokens and hides_control,
        preserved_tokens=tuple(dict.fromkeys((*preserved_tokens, *_stop_marks(task, tokenizer, info)))),
        stop_token_ids=_stop_tokens(task.stop_token_ids, info),
        top_logprobs=max(asked)
        if (asked := [n for n in (top_logprobs, task.prompt_logprobs) if n is not None])
        else None,
        prompt_logprobs=prompt_logprobs or task.prompt_logprobs is not None,
        priority=task.priority,
        cache_salt=task.cache_salt,
        cache_prompt=task.cache_prompt,
        model=task.model,
        lora=task.lora,
        checkpoints=checkpoints,
        media=media,
        prediction=prediction,
    )


def _prediction(text: str, tokenizer: Tokenizer, info: ModelInfo) -> array[int]:
    """A prediction's tokens: control tokens are nothing that an answer says."""
    if not text:
        return NO_TOKENS
    check_fits(len(text), "prediction", info)
    with Untokenizable.named("prediction"):
        return _checked_tokens(tokenizer.tokenize(text, add_special=False, parse_special=False), "prediction", info)


def _stop_tokens(tokens: Sequence[int], info: ModelInfo) -> tuple[int, ...]:
    if tokens and not 0 <= min(tokens) <= max(tokens) < info.n_vocab:
        raise InvalidRequest(f"`stop_token_ids` has a token id outside 0 to {info.n_vocab - 1}", param="stop_token_ids")
    return tuple(dict.fromkeys(tokens))


def _min_tokens(task: Task, *, constrained: bool) -> int:
    if task.max_tokens is not None and task.min_tokens > task.max_tokens:
        most = task.named("max_tokens")
        raise InvalidRequest(f"`min_tokens` must not be larger than `{most}`", param="min_tokens")
    if task.min_tokens and constrained:
        raise InvalidRequest(
            "`min_tokens` cannot be combined with a grammar, which decides the end", param="min_tokens"
        )
    return min(task.min_tokens, _MAX_TOKENS)


def _stop_strings(task: Task) -> tuple[str, ...]:
    for string in task.stop:
        if not 1 <= len(string.encode()) <= MAX_STOP_BYTES:
            name = task.named("stop")
            raise InvalidRequest(f"a string of `{name}` has 1 to {MAX_STOP_BYTES} bytes of UTF-8", param=name)
    return tuple(dict.fromkeys(task.stop))


def _stop_marks(task: Task, tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    """Control tokens whose text is a stop string, as editors send those by which a text is filled in: they have to
    leave text, or nothing stops there."""
    marks = []
    for text in {*task.stop} & {*info.control_tokens} if task.stop else ():
        ids = tokenizer.tokenize(text, add_special=False, parse_special=True)
        marks += [id for id in ids if tokenizer.is_control(id) and tokenizer.piece(id) == text.encode()]
    return sorted(marks)


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


def _prompt_tokens(
    prompt: str | list[int], path: str, tokenizer: Tokenizer, info: ModelInfo, task: CompletionTask
) -> array[int]:
    if not prompt:
        raise InvalidRequest(f"`{path}` must not be empty", param=path)
    if isinstance(prompt, str):
        if task.truncated is None:
            check_fits(len(prompt), path, info)
        else:
            # the tokens at the cut are not among those that count
            prompt = prompt[-(info.max_seq_len + _AT_THE_CUT) * info.longest_piece :]
        with Untokenizable.named(path):
            tokens = tokenizer.tokenize(prompt, add_special=task.adds_special, parse_special=True)
    else:
        if len(prompt) > info.max_seq_len and task.truncated is None:
            raise _too_long(path, f"{len(prompt)} tokens", info, len(prompt))
        tokens = checked_ids(prompt, path, info)
    return _checked_tokens(_truncated(tokens, task, info), path, info)


def _truncated(tokens: array[int], task: Task, info: ModelInfo) -> array[int]:
    """As many of the last ``tokens`` as the task says."""
    if task.truncated is None:
        return tokens
    n = task.truncated
    if n < 0:
        output = info.max_seq_len // _OUTPUT_SHARE if task.max_tokens is None else task.max_tokens
        n = max(1, info.max_seq_len - output)
    return tokens[-n:] if n else array("i")


def checked_ids(ids: list[int], path: str, info: ModelInfo) -> array[int]:
    """Raises InvalidRequest for an id outside the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < info.n_vocab:
        raise InvalidRequest(f"`{path}` has a token id outside 0 to {info.n_vocab - 1}", param=path)
    return array("i", ids)


def check_fits(n_chars: int, path: str, info: ModelInfo) -> None:
    """Refuse what cannot fit, before seconds of tokenising would only say by how much. Raises ContextLengthExceeded."""
    if n_chars > info.max_seq_len * info.longest_piece:
        n_tokens = n_chars // info.longest_piece
        raise _too_long(path, f"more than {n_tokens} tokens", info, n_tokens)


def _checked_tokens(tokens: array[int], path: str, info: ModelInfo) -> array[int]:
    if not tokens:
        raise InvalidRequest(f"`{path}` gives no tokens", param=path)
    if len(tokens) > info.max_seq_len:
        raise _too_long(path, f"{len(tokens)} tokens", info, len(tokens))
    return tokens


def _too_long(path: str, size: str, info: ModelInfo, n_tokens: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(info.max_seq_len, size, param=path, n_tokens=n_tokens)
