"""Log probabilities as OpenAI writes them: chat's list of objects, completions' four parallel lists."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from llamafast.api.chat.schema import ChatTokenLogprob, ChoiceLogprobs, TopLogprob
from llamafast.api.delivery import Answer
from llamafast.api.schema.completions import CompletionRequest, Logprobs
from llamafast.api.schema.fragments import MAX_TOP_LOGPROBS, GenerationOptions
from llamafast.api.sse import encode
from llamafast.engine.types import Event, Plan, Tokenizer, TokenLogprob

_Decoder = getincrementaldecoder("utf-8")

# What OpenAI gives for a token that is next to impossible; JSON has no infinity.
LOWEST = -9999.0


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST


class TokenNames:
    """Tokens as text, whose bytes that are not UTF-8 by themselves become U+FFFD, or as "token_id:N" where the request
    has vLLM's ``return_tokens_as_token_ids``; beside each ``n_top`` of the likeliest are told."""

    def __init__(self, request: GenerationOptions, tokenizer: Tokenizer, n_top: int = MAX_TOP_LOGPROBS) -> None:
        self._as_ids = bool(request.return_tokens_as_token_ids)
        self.n_top = n_top
        self.piece = tokenizer.piece

    def __getitem__(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self.piece(token).decode("utf-8", "replace")


class PromptToken(msgspec.Struct):
    """vLLM's, by the token's id; the likeliest one has rank 1."""

    logprob: float
    rank: int
    decoded_token: str


def chat_logprobs(tokens: Iterable[TokenLogprob], names: TokenNames) -> ChoiceLogprobs:
    return ChoiceLogprobs(encoded_tokens(tokens, names))


def prompt_logprobs(tokens: Iterable[TokenLogprob], n_top: int, names: TokenNames) -> list[msgspec.Raw | None]:
    """vLLM's ``prompt_logprobs`` of a prompt's tokens from the second on: for each of them, and none for the first, an
    object of itself and the ``n_top`` likeliest."""
    told: list[msgspec.Raw | None] = [None]
    for token, logprob, top, rank in tokens:
        entries = {token: PromptToken(finite(logprob), rank, names[token])}
        for k, (other, p) in enumerate(islice(top, n_top), 1):
            entries.setdefault(other, PromptToken(finite(p), k, names[other]))
        told.append(msgspec.Raw(encode(entries)))
    return told


def encoded_tokens(tokens: Iterable[TokenLogprob], names: TokenNames) -> list[msgspec.Raw]:
    """Encoded one by one, so that no call keeps the GIL for all of them, and once, however often they are told."""
    return [msgspec.Raw(encode(token)) for token in _chat_tokens(tokens, names)]


def _chat_tokens(tokens: Iterable[TokenLogprob], names: TokenNames) -> Iterator[ChatTokenLogprob]:
    for token, logprob, top, _ in tokens:
        yield ChatTokenLogprob(
            names[token],
            finite(logprob),
            list(names.piece(token)),
            [TopLogprob(names[other], finite(p), list(names.piece(other))) for other, p in islice(top, names.n_top)],
        )


class PromptScores:
    """The log probabilities of a request's prompts in vLLM's form, which are written once, however many of its ``n``
    choices they are told with."""

    def __init__(self, names: TokenNames, n: int) -> None:
        self._names = names
        self._n = n
        self._told: dict[int, list[msgspec.Raw | None]] = {}

    def told(self, index: int, tokens: Iterable[TokenLogprob]) -> list[msgspec.Raw | None]:
        """Of the prompt of choice ``index``, whose ``tokens`` those are."""
        prompt = index // self._n
        if prompt not in self._told:
            self._told[prompt] = prompt_logprobs(tokens, self._names.n_top, self._names)
        return self._told[prompt]


class CompletionLogprobs:
    """The log probabilities of one request's choices, those of an echoed prompt included, which are written once for
    all its choices."""

    def __init__(self, request: CompletionRequest, plan: Plan, echoes: list[str], tokenizer: Tokenizer) -> None:
        self._names = TokenNames(request, tokenizer, request.logprobs or 0)
        self._plan = plan
        self._echoes = echoes if request.echo else []
        self._control = tokenizer.is_control
        self._prompts: dict[int, list[TokenLogprob]] = {}
        self._offsets: dict[int, int] = {}
        self._decoders: dict[int, IncrementalDecoder] = {}
        # of a prompt, with the offset behind it and what its decoder has of a character
        self._openings: dict[int, tuple[Logprobs, int, tuple[bytes, int]]] = {}

    def whole(self, index: int, answer: Answer) -> Logprobs:
        """Those of a finished choice."""
        if not self._echoes:
            return self._lists(index, answer.logprobs)
        return self._prompt(index, answer.prompt_logprobs).joined(self._lists(index, answer.logprobs))

    def parts(self, event: Event) -> Iterator[tuple[str, Logprobs]]:
        """What an Event adds to a stream, as pairs of text and its log probabilities: first the echoed prompt, once
        the first token is there."""
        prompt = self._prompts.setdefault(event.index, [])
        prompt += event.prompt_logprobs or ()
        if self._echoes and event.index not in self._offsets and (event.n_tokens or event.finish_reason):
            yield self._echoes[event.index // self._plan.n], self._prompt(event.index, prompt)
        if event.text or event.logprobs:
            yield event.text, self._lists(event.index, event.logprobs or ())

    def _prompt(self, index: int, tokens: list[TokenLogprob]) -> Logprobs:
        """What choice ``index`` begins with."""
        prompt_index = index // self._plan.n
        if prompt_index not in self._openings:
            opening = self._opening(index, prompt_index, tokens)
            self._openings[prompt_index] = opening, self._offsets[index], self._decoders[index].getstate()
        opening, self._offsets[index], state = self._openings[prompt_index]
        self._decoders[index] = _Decoder("replace")
        self._decoders[index].setstate(state)
        return opening

    def _opening(self, index: int, prompt_index: int, tokens: list[TokenLogprob]) -> Logprobs:
        """The first token that is seen has no log probability; a BOS that the client did not write is not seen."""
        first = self._plan.prompts[prompt_index][0]
        if (
            tokens
            and self._control(first)
            and not self._echoes[prompt_index].encode().startswith(self._names.piece(first))
        ):
            first, tokens = tokens[0].token, tokens[1:]
        opening = self._lists(index, [TokenLogprob(first, 0.0, [])])
        opening.token_logprobs = [None]
        return opening.joined(self._lists(index, tokens))

    def _lists(self, index: int, tokens: Iterable[TokenLogprob]) -> Logprobs:
        offset = self._offsets.get(index, 0)
        decoder = self._decoders.setdefault(index, _Decoder("replace"))
        lists = Logprobs()
        for token, logprob, top, _ in tokens:
            name, piece = self._names[token], self._names.piece(token)
            lists.tokens.append(name)
            lists.token_logprobs.append(finite(logprob))
            # the chosen token is always among them; of tokens with one text the likeliest counts
            best = {self._names[other]: finite(p) for other, p in reversed(list(islice(top, self._names.n_top)))}
            lists.top_logprobs.append(msgspec.Raw(encode({name: finite(logprob)} | best)) if best else None)
            # where the token goes on with a character that one before began, the offset is that character's
            lists.text_offset.append(offset)
            offset += len(decoder.decode(piece))
        self._offsets[index] = offset
        return lists
