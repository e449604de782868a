"""Plan → Sequences: the core's end of what one request wants generated."""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import NamedTuple

from msgspec.structs import asdict, replace

from llamafast._core.constraint import Constraint
from llamafast._core.dry import Breakers
from llamafast._core.infill import Infill
from llamafast._core.invocation import Invocation
from llamafast._core.sampler import Sampler
from llamafast._core.sequence import Sequence
from llamafast._core.spans import Span
from llamafast._core.vocab import Vocab
from llamafast.engine.adapters import Applied
from llamafast.engine.media import MediaSpan
from llamafast.engine.prefix_key import PrefixKey, digest_of, is_private
from llamafast.engine.types import ANYBODY, INFILL_STAGE, ModelInfo, Plan, SamplingParams, Tenant
from llamafast.errors import ContextLengthExceeded, InvalidRequest

# Tables of DRY's sequence breakers that are kept, and the most ways to spell one of them.
BREAKERS_KEPT = 64
MAX_BREAKERS = 4096


@dataclass(eq=False)
class Choices:
    """The sequences of a request that are still to be made, ``n_left`` of them, by their index.

    ``priority`` is the tenant's, then the request's own.
    """

    request: int
    n_left: int
    tenant: Tenant
    priority: tuple[int, int]
    sequences: Iterator[tuple[int, Sequence | None]]
    next_turn: asyncio.Handle | None = None

    def stop(self) -> None:
        if self.next_turn is not None:
            self.next_turn.cancel()


class Whose(NamedTuple):
    """With whom sequences may share, the group of adapters that they begin with, and where they get another one."""

    salt: bytes
    group: int
    applied: Applied
    invocation: Invocation | None = None


class SequencePlanner:
    """Makes Sequences for one model; their tags are unique."""

    def __init__(self, vocab: Vocab, info: ModelInfo) -> None:
        self._vocab = vocab
        self._info = info
        self._tags = count(1)
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        self._infill: Infill | None = None

    def is_prepared(self, params: SamplingParams) -> bool:
        return not params.dry_multiplier or params.dry_sequence_breakers in self._breakers

    def prepare(self, params: SamplingParams) -> Breakers:
        """Find what takes long, for a later ``of``. Any thread. Raises InvalidRequest."""
        texts = params.dry_sequence_breakers
        try:
            found = Breakers.spelling(self._vocab, tuple(text.encode() for text in texts), MAX_BREAKERS)
        except ValueError as error:
            raise InvalidRequest(f"`dry_sequence_breakers`: {error}", param="dry_sequence_breakers") from error
        kept = list(self._breakers.items())[1 - BREAKERS_KEPT :]
        self._breakers = dict([*kept, (texts, found)])
        return found

    def of(
        self, plan: Plan, tenant: Tenant = ANYBODY, adapters: Iterable[Applied] | None = None
    ) -> Iterator[Sequence | None]:
        """A Sequence for every choice, by index; None where there is nothing to generate. ``adapters`` are applied to
        each prompt.

        The plan is checked here, each Sequence is made when it is asked for: thousands take a while. Raises
        ContextLengthExceeded or InvalidRequest.
        """
        limits = [self._max_tokens(plan, prompt) for prompt in plan.prompts]
        private = None if plan.cache_prompt else next(self._tags)
        key = PrefixKey(tenant=tenant.salt, cache_salt=plan.cache_salt, private=private)
        applied = repeat(Applied()) if adapters is None else adapters
        return self._each(plan, limits, self._sampler(plan.sampling), key, applied)

    def _max_tokens(self, plan: Plan, prompt: array[int]) -> int:
        room = self._info.max_seq_len - len(prompt)
        if room < 0:
            raise ContextLengthExceeded(self._info.max_seq_len, f"{len(prompt)} tokens", param="prompt")
        try:
            if not plan.media:  # else whoever makes a Sequence looks at every id
                self._vocab.check(prompt)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error
        limits = (plan.max_tokens, self._info.max_output_tokens, room)
        return min(limit for limit in limits if limit is not None)

    def _each(
        self, plan: Plan, limits: list[int], sampler: Sampler, key: PrefixKey, adapters: Iterable[Applied]
    ) -> Iterator[Sequence | None]:
        stops = tuple(stop.encode() for stop in plan.stop)
        preserved = array("i", plan.preserved_tokens)
        for prompt_index, (prompt, max_tokens, applied) in enumerate(zip(plan.prompts, limits, adapters, strict=False)):
            # every row of a scored prompt has to be computed, for the first of its choices; the others take them
            own_key = replace(key, private=next(self._tags)) if plan.prompt_logprobs else key
            whose = _whose(own_key, applied)
            for k in range(plan.n):
                scored = plan.prompt_logprobs and k == 0
                if max_tokens == 0 and not (scored or plan.max_tokens == 0):
                    yield None
                    continue
                own = sampler.reseeded(_seed(plan.sampling, prompt_index * plan.n + k))
                tag = next(self._tags)
                yield self._sequence(plan, prompt, own, tag, max_tokens, stops, preserved, whose, scored)

    def _sequence(
        self,
        plan: Plan,
        prompt: array[int],
        sampler: Sampler,
        tag: int,
        max_tokens: int,
        stops: tuple[bytes, ...],
        preserved: array[int],
        whose: Whose,
        scored: bool,
    ) -> Sequence:
        logprobs = plan.top_logprobs is not None
        try:
            return Sequence(
                self._vocab,
                prompt,
                sampler,
                tag=tag,
                max_tokens=max_tokens,
                **plan.output_options(),
                announce=plan.announce,
                budget=None if plan.budget is None else tuple(plan.budget),
                stop_tokens=plan.stop_token_ids,
                stops=stops,
                show_control=not plan.skip_special_tokens,
                preserved=preserved,
                top_logprobs=-1 if plan.top_logprobs is None else plan.top_logprobs,
                score_prompt=scored,
                salt=whose.salt,
                private=is_private(whose.salt),
                seed=digest_of(whose.salt),
                checkpoints=plan.checkpoints,
                spans=tuple(_span(span) for span in plan.media),
                media=plan.media,
                prediction=plan.prediction,
                group=whose.group,
                adapters=whose.applied,
                invocation=whose.invocation,
                constraint=None
                if plan.matcher is None
                else Constraint(plan.matcher, self._info.n_vocab, fast_forward=not logprobs),
            )
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error

    def _sampler(self, params: SamplingParams) -> Sampler:
        """What the samplers of a request share; ``reseeded`` makes those of its choices."""
        breakers = None
        if params.dry_multiplier:
            breakers = self._breakers.get(params.dry_sequence_breakers) or self.prepare(params)
        if INFILL_STAGE in params.samplers and self._infill is None:
            self._infill = Infill(self._vocab)
        try:
            return sampler_of(self._info.n_vocab, params, breakers, self._infill)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error


def sampler_of(
    n_vocab: int, params: SamplingParams, breakers: Breakers | None = None, infill: Infill | None = None
) -> Sampler:
    """What the core makes of ``params``, with the seed 0. Raises ValueError for what makes no sense."""
    values = asdict(params) | {"seed": 0}
    del values["dry_sequence_breakers"]
    return Sampler(n_vocab, **values, dry_breakers=breakers, infill=infill)


def _whose(key: PrefixKey, applied: Applied) -> Whose:
    salt = replace(key, adapters=applied.group.key, invoked_at=applied.invoked_at).encoded()
    at, group = applied.invoked_at, applied.group.number
    if not at:
        return Whose(salt, group, applied)
    invocation = Invocation(at=at, group=group, salt=salt, seed=digest_of(salt))
    return Whose(replace(key, adapters=applied.before.key).encoded(), applied.before.number, applied, invocation)


def _span(span: MediaSpan) -> Span:
    rows = span.rows
    return Span(span.row, rows.n_rows, rows.n_positions, rows.causal, rows.offsets)


def _seed(params: SamplingParams, index: int) -> int:
    return secrets.randbits(64) if params.seed is None else (params.seed + index) & 0xFFFF_FFFF_FFFF_FFFF
