"""POST /completion and /infill, from the body to the reply, and GET /props."""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from msgspec import UNSET, structs

from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.grammars import Grammars
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.measured import Measured
from llamafast.api.native.schema import (
    Answer,
    CompletionBody,
    GenerationSettings,
    InfillBody,
    NativeOptions,
    Piece,
    Props,
    StopType,
    TokenProbability,
)
from llamafast.api.sse import EventStream, StreamForm, encode, frame
from llamafast.chat.grammar.asked import Ask
from llamafast.chat.plan import check_fits, plan_completion, plan_infill
from llamafast.chat.request import CompletionTask
from llamafast.engine.types import EnginePort, Event, Generation, ModelInfo, Plan, Tokenizer, TokenLogprob
from llamafast.errors import InvalidRequest, Untokenizable

_COMPLETION = msgspec.json.Decoder(CompletionBody)
_INFILL = msgspec.json.Decoder(InfillBody)
_STREAM = StreamForm(b"", b": ping\n\n", b"")


class NativeEndpoint:
    def __init__(self, engine: EnginePort, grammars: Grammars, ping_seconds: float) -> None:
        self._engine = engine
        self._grammars = grammars
        self._ping_seconds = ping_seconds

    async def completion(self, exchange: Exchange, body: bytes) -> None:
        request = await run_sized(len(body), decode_request, _COMPLETION, body, self._engine.info, exchange)
        plan, ask = await run_sized(len(body), self._completion, request)
        await self._answer(exchange, request, plan, ask)

    async def infill(self, exchange: Exchange, body: bytes) -> None:
        request = await run_sized(len(body), decode_request, _INFILL, body, self._engine.info, exchange)
        engine = self._engine
        plan, ask = await run_sized(len(body), plan_infill, request.task(), engine.tokenizer, engine.info)
        await self._answer(exchange, request, plan, ask)

    def _completion(self, request: CompletionBody) -> tuple[Plan, Ask | None]:
        engine = self._engine
        prompt: Any = request.prompt
        if isinstance(prompt, list) and any(isinstance(part, str) for part in prompt):
            prompt = _mixed(prompt, engine.tokenizer, engine.info)
        task = CompletionTask(**request.limited(), prompt=prompt)
        return plan_completion(task, engine.tokenizer, engine.info)

    async def _answer(self, exchange: Exchange, request: NativeOptions, plan: Plan, ask: Ask | None) -> None:
        engine = self._engine
        await engine.prepare(plan)
        plan = await self._grammars.constrained(plan, ask)
        generation = exchange.follow(engine.submit(plan, exchange.tenant))
        telling = Telling(request, generation, engine)
        try:
            if request.stream:
                await self._stream(exchange, telling)
                return
            pieces = [piece async for batch in telling.batches() for piece in batch]
            body = await run_sized(sum(len(piece.content) for piece in pieces), telling.whole, pieces)
            await exchange.reply(200, body, JSON_TYPE)
        finally:
            generation.cancel()

    async def _stream(self, exchange: Exchange, telling: Telling) -> None:
        async with EventStream(exchange, self._ping_seconds, form=_STREAM) as stream:
            async for batch in telling.batches():
                if frames := telling.framed(batch):
                    await stream.write(frames)
            await stream.end(frame(telling.told(telling.end(""))))


class Telling:
    """One answer while it is generated: ``batches``, then its ``end``."""

    def __init__(self, request: NativeOptions, generation: Generation, engine: EnginePort) -> None:
        self._request = request
        self._generation = generation
        self._engine = engine
        self._measured = Measured(generation, request)
        self._first = 0.0
        self._has_new_line = False
        self._indentation = Indentation(request.n_indent or 0)
        self._stop: tuple[StopType, str] = ("none", "")

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """Its pieces as they become known. Raises the LlamafastError that ended the generation."""
        async for (event,) in self._generation:
            cut = self._cut(event) or self._indentation.ends(event)
            yield [self._piece(event)] if event.text or event.token_ids else []
            if event.finish_reason is not None:
                self._stop = _stop_of(event)
            if cut:
                self._stop = ("limit", "")
                return

    def framed(self, pieces: list[Piece]) -> bytes:
        """The frames of one batch, and what is told beside them."""
        blank = Piece(content="", tokens=[], tokens_predicted=0, tokens_evaluated=self._generation.prompt_tokens)
        return self._measured.framed([frame(piece) for piece in pieces], lambda: frame(blank))

    def _cut(self, event: Event) -> bool:
        """Whether its time is over and its line complete: then ``event`` has the rest of that."""
        if event.n_tokens:
            self._first = self._first or time.monotonic()
        most = self._request.t_max_predict_ms
        since = time.monotonic() - self._first if self._first else 0.0
        late = most is not None and most >= 0 and 1000 * since > most
        begun, line, _ = event.text.partition("\n")
        cut = late and event.finish_reason is None and (self._has_new_line or bool(line))
        if cut and line:
            event.text = begun
        self._has_new_line = self._has_new_line or bool(line)
        return cut

    def _piece(self, event: Event) -> Piece:
        probabilities = None if event.logprobs is None else _probabilities(event.logprobs, self._engine.tokenizer)
        return Piece(
            content=event.text,
            tokens=event.token_ids or [],
            tokens_predicted=self._generation.completion_tokens,
            tokens_evaluated=self._generation.prompt_tokens,
            completion_probabilities=UNSET if probabilities is None else probabilities,
        )

    def end(self, content: str, tokens: Iterable[int] = ()) -> Answer:
        generation = self._generation
        stop_type, word = self._stop
        return Answer(
            content=content,
            tokens=list(tokens),
            model=self._request.model or self._engine.info.id,
            tokens_predicted=generation.completion_tokens,
            tokens_evaluated=generation.prompt_tokens,
            has_new_line=self._has_new_line,
            stop_type=stop_type,
            stopping_word=word,
            tokens_cached=generation.cached_tokens,
            timings=self._measured.timings(),
        )

    def whole(self, pieces: list[Piece]) -> bytes:
        """The JSON of the answer that ``pieces`` are."""
        answer = self.end(
            "".join(piece.content for piece in pieces), [token for piece in pieces for token in piece.tokens]
        )
        if self._request.n_probs:
            answer.completion_probabilities = [
                token for piece in pieces for token in piece.completion_probabilities or ()
            ]
        return encode(self.told(answer))

    def told(self, answer: Answer) -> Any:
        """``answer``, or those of its fields that are wanted."""
        paths = self._request.response_fields
        return _fields(msgspec.to_builtins(answer), paths) if paths else answer


class Indentation:
    """Ends an answer with its first line, from the second one on, that is indented by less than ``least`` characters of
    white space: of that only its indentation is left, as llama-server has it. Empty lines end nothing."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._indent: int | None = None  # of the line that has begun; None: it is known to be deep enough

    def ends(self, event: Event) -> bool:
        """Whether ``event``, of which the rest is cut off then, does so."""
        for at, character in enumerate(event.text if self._least else ""):
            if character == "\n":
                self._indent = 0
            elif self._indent is None:
                continue
            elif character in " \t":
                self._indent += 1
            elif self._indent < self._least:
                event.text = event.text[:at]
                return event.finish_reason is None
            else:
                self._indent = None
        return False


def props(engine: EnginePort) -> Props:
    """What llama-server's clients ask before anything else: above all how much fits."""
    info = engine.info
    return Props(
        default_generation_settings=GenerationSettings(info.max_seq_len, structs.asdict(info.sampling)),
        total_slots=info.n_seq_max,
        model_alias=info.id,
        model_path=info.id,
        chat_template=info.chat_template or "",
        bos_token=info.bos_text,
        eos_token=info.eos_text,
        modalities={"vision": "image" in info.modalities, "audio": "audio" in info.modalities},
        build_info="llamafast",
    )


def _stop_of(event: Event) -> tuple[StopType, str]:
    if event.finish_reason == "length":
        return "limit", ""
    return ("word", event.matched_stop) if isinstance(event.matched_stop, str) else ("eos", "")


def _mixed(parts: list[str | int], tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    """Texts and ids in a row; a text at the beginning has BOS before it. Raises InvalidRequest, also for several texts
    without an id, which are several prompts to llama-server, and ContextLengthExceeded."""
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts) > 1:
        raise InvalidRequest("`prompt` is one prompt here: send one request for each text", param="prompt")
    check_fits(sum(map(len, texts)), "prompt", info)
    ids = array("i")
    for i, part in enumerate(parts):
        if isinstance(part, str):
            with Untokenizable.named(f"prompt[{i}]"):
                ids += tokenizer.tokenize(part, add_special=not i, parse_special=True)
        elif not 0 <= part < 2**31:
            raise InvalidRequest(f"`prompt[{i}]` is no token id", param=f"prompt[{i}]")
        else:
            ids.append(part)
    return ids.tolist()


def _probabilities(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[TokenProbability]:
    return [
        TokenProbability(
            *_named(token.token, tokenizer), token.logprob,
            [TokenProbability(*_named(id, tokenizer), logprob) for id, logprob in token.top],
        )
        for token in tokens
    ]  # fmt: skip


def _named(token: int, tokenizer: Tokenizer) -> tuple[int, str, list[int]]:
    piece = tokenizer.piece(token)
    return token, piece.decode(errors="replace"), list(piece)


def _fields(answer: Any, paths: Iterable[str]) -> dict[str, Any]:
    """What ``answer`` has under each path; a path that leads nowhere is left out."""
    found: dict[str, Any] = {}
    for path in paths:
        value = answer
        for name in path.split("/"):
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found
