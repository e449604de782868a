"""All features at once: random requests that come, leave and compete for little memory, in every kind of memory.

The laws: each text is what the request gets alone; nobody is given what was computed for somebody it may not share
with; nothing is left behind. Every feature that changes how sequences run adds its actions here.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest
from core.inside import drafter_of, set_times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support.engines import settled
from support.fake_encoder import FakeEncoder, fake_medium

from engine.test_memory_kinds import KINDS, TEXTS, start
from llamafast.api.schema.completions import CompletionRequest
from llamafast.chat.grammar.asked import asked_of_completion
from llamafast.chat.grammar.constraints import Constraints
from llamafast.chat.prompt.media import row_ids
from llamafast.config import DiskCacheConfig
from llamafast.engine import disk_places
from llamafast.engine.engine import Engine
from llamafast.engine.media import MediaSpan, Medium
from llamafast.engine.types import Generation, Matcher, Plan, SamplingParams, Tenant
from llamafast.errors import AdapterInUse, EngineUnavailable

T = TypeVar("T")

TENANTS = (Tenant(), Tenant(name="a", salt="a"), Tenant(name="b", salt="b", max_running=1, priority=-1))
# the last one says again and again what tokens are drafted from
GRAMMARS = (None, "[a-f]+", "(ab|cd)*e?", '([{]"a": [0-9]{1,2}, "b": (true|false)[}], )+')
# None of whose draws falls so near an edge that the order of the cells that attention sums over decides it.
SAMPLINGS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.0, seed=11),
    SamplingParams(temperature=1.3, seed=3, repetition_penalty=1.2, min_p=0.01, dry_multiplier=0.8),
)
# of one digest each, whichever positions their rows have
PICTURES = [fake_medium(seed, grid=None, n_rows=24) for seed in (1, 2)]
GRIDS = [fake_medium(seed, grid=(6, 4)) for seed in (1, 2)]
# by name, with scales: of so many sets of adapters is a request
LORAS: tuple[dict[str, float], ...] = (
    {}, {"lora0": 1.0}, {"lora0": -0.5}, {"again": -0.25}, {"lora1": 1.0}, {"lora0": 1.0, "lora1": -0.5},
)  # fmt: skip
LOADED = 3  # the one that comes and goes
ACTIVATED, INVOCATION = "lora1", [310, 311]
MAX_LIVE = 8
# cells for a few requests, so that some wait and some give way
N_CTX = 640
RAM_BYTES = 400_000
DISK_BYTES = 3_000_000
N_SEQ_MAX = 4


class Work(NamedTuple):
    """What is computed; alone it decides the text. ``parts`` are (text, length) of the prompt."""

    parts: tuple[tuple[int, int], ...]
    last: int
    max_tokens: int
    n: int
    sampling: int
    grammar: int
    logprobs: int | None
    scored: bool
    shown: int
    lora: int
    invoked: int

    @property
    def prompt(self) -> list[int]:
        """Behind its first text a picture may be ``shown``; 0: none is. An adapter may be ``invoked`` behind that, and
        once more at the end; 0: none is."""
        first, *others = ([*TEXTS[text][:length]] for text, length in self.parts)
        once, twice = (INVOCATION if self.invoked >= n else [] for n in (1, 2))
        return [*first, *self._picture, *once, *(token for text in others for token in text), *twice, self.last]

    @property
    def adapters(self) -> dict[str, float]:
        """Those that it begins with, where it does not begin with what invokes another one."""
        return {name: scale for name, scale in LORAS[self.lora].items() if name != ACTIVATED}

    @property
    def invoked_at(self) -> int | None:
        """From which token on it has the one that is activated, too."""
        if not self.invoked or ACTIVATED not in LORAS[self.lora]:
            return None
        return len(self.prompt) - len(INVOCATION) - 1 if self.invoked == 2 else self.parts[0][1] + len(self._picture)

    @property
    def span(self) -> int:
        """Where the picture's rows begin."""
        return self.parts[0][1] + 1

    @property
    def _picture(self) -> list[int]:
        if not self.is_shown:
            return []
        return [40, *row_ids(PICTURES[self.shown - 1].digest, 1, PICTURES[self.shown - 1].chunks[1].n_rows), 41]

    @property
    def is_shown(self) -> bool:
        return bool(self.shown) and not self.scored


class Whose(NamedTuple):
    """For whom, and when: none of it may show in the text."""

    tenant: int
    cache_salt: str
    priority: int
    speculative: bool = True


WORKS = st.builds(
    Work,
    parts=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([200, 150, 151, 40, 7, 0])), min_size=1, max_size=2
    ).map(tuple),
    last=st.integers(33, 34),
    max_tokens=st.sampled_from([60, 350, 17, 1]),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    sampling=st.integers(0, len(SAMPLINGS) - 1),
    grammar=st.sampled_from([0, 0, 0, 1, 2, 3]),
    logprobs=st.sampled_from([None, None, 0, 2]),
    scored=st.sampled_from([False, False, False, True]),
    shown=st.sampled_from([0, 0, 1, 1, 2]),
    lora=st.sampled_from([0, 0, 0, 1, 2, LOADED, 4, 4, 5]),
    invoked=st.sampled_from([0, 1, 1, 2]),
)
WHOSES = st.builds(
    Whose,
    tenant=st.integers(0, len(TENANTS) - 1),
    cache_salt=st.sampled_from(["", "", "a"]),
    priority=st.sampled_from([0, 0, -1, 3]),
    speculative=st.sampled_from([True, True, True, False]),
)
# of one choice: text, the tokens that came with log probabilities, how it ended
Said = tuple[str, list[int], str | None]


class Heard:
    """A request that is under way; ``said`` grows."""

    def __init__(self, work: Work, whose: Whose, generation: Generation) -> None:
        self.work, self.whose, self.generation = work, whose, generation
        self.said: list[Said] = [("", [], None)] * work.n
        self.refused = False
        self.task = asyncio.get_running_loop().create_task(self._listen())

    @property
    def _key(self) -> tuple[str, str]:
        return TENANTS[self.whose.tenant].salt, self.whose.cache_salt

    def may_share_with(self, other: Heard) -> int:
        """So many tokens at most, where they have them in common."""
        one, two = self.work, other.work
        same_place = one.invoked_at == two.invoked_at
        if self._key != other._key or (0 in (one.invoked_at, two.invoked_at) and not same_place):
            return 0
        if same_place and (LORAS[one.lora] if one.invoked_at is not None else one.adapters) == (
            LORAS[two.lora] if two.invoked_at is not None else two.adapters
        ):
            return N_CTX * N_SEQ_MAX
        places = [work.invoked_at for work in (one, two) if work.invoked_at is not None]
        return min(places, default=0) if one.adapters == two.adapters else 0

    async def _listen(self) -> None:
        try:
            async for batch in self.generation:
                for event in batch:
                    text, tokens, _ = self.said[event.index]
                    tokens = [*tokens, *(one.token for one in event.logprobs or ())]
                    self.said[event.index] = (text + event.text, tokens, event.finish_reason)
        except EngineUnavailable:
            self.refused = True  # the server was stopped

    async def leave(self) -> None:
        self.generation.cancel()
        self.task.cancel()
        await asyncio.wait((self.task,))


class Together(RuleBasedStateMachine):
    """``launch`` starts an engine, alone or with a cache, and a disk below it where a folder is given; ``pictures`` are
    as its model has positions for them."""

    launch: ClassVar[Callable[[bool, Path | None], Engine]]
    pictures: ClassVar[Sequence[Medium]]
    truths: ClassVar[dict[Work, list[Said]]]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = TemporaryDirectory()
        self._alone = self._run(self._started(None, alone=True))
        self._disk: Path | None = None
        self._asked: list[Heard] = []
        self._open()

    @initialize(disk=st.sampled_from([True, True, False]))
    def begin(self, disk: bool) -> None:
        if disk:
            self._run(self._engine.close())
            self._disk = Path(self._folder.name)
            self._open()

    def teardown(self) -> None:
        self._finish()
        for engine in (self._engine, self._alone):
            self._run(engine.close())
        self._loop.close()
        self._folder.cleanup()

    @precondition(lambda self: len(self._live) < MAX_LIVE)
    @rule(works=st.lists(WORKS, min_size=2, max_size=4), whoses=st.lists(WHOSES, min_size=1, max_size=3))
    def ask(self, works: list[Work], whoses: list[Whose]) -> None:
        """The same of several tenants at once."""
        for work in works:
            for whose in whoses:
                self._live.append(self._run(self._submit(work, whose)))

    @rule(work=WORKS, whose=WHOSES, data=st.data())
    def follow_up(self, work: Work, whose: Whose, data: st.DataObject) -> None:
        """A prompt that begins as one before it."""
        if self._asked and len(self._live) < MAX_LIVE:
            parts = data.draw(st.sampled_from(self._asked)).work.parts
            work = work._replace(parts=(*parts[:1], *work.parts[:1]))
            self._live.append(self._run(self._submit(work, whose)))

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.01]))
    def wait(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    @precondition(lambda self: self._live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        heard = self._live.pop(data.draw(st.integers(0, len(self._live) - 1)))
        self._run(heard.leave())
        for said, truth in zip(heard.said, self._truth(heard.work), strict=True):
            assert truth[0].startswith(said[0])

    @precondition(lambda self: len(self._asked) > MAX_LIVE)
    @rule()
    def forget(self) -> None:
        self._run(self._engine.reset_prefix_cache())

    @precondition(lambda self: self._engine.info.adapters)
    @rule()
    def load_or_unload(self) -> None:
        """Only who runs keeps an adapter from being unloaded."""
        if "again" not in self._engine.info.adapters:
            self._run(load_again(self._engine))
            return
        try:
            self._run(self._engine.adapters.unload("again"))
        except AdapterInUse:
            assert any(heard.work.lora == LOADED and not heard.task.done() for heard in self._live)

    @precondition(lambda self: len(self._live) >= MAX_LIVE)
    @rule()
    def finish(self) -> None:
        self._finish()

    @precondition(lambda self: len(self._asked) - self._n_before > 3 * MAX_LIVE)
    @rule()
    def restart(self) -> None:
        """What runs ends with an error or as it should; what was computed may be on the disk."""
        live, self._live = self._live, []
        self._run(self._engine.close())
        for heard in live:
            self._run(asyncio.wait((heard.task,), timeout=60))
            self._check(heard)
        self._open()

    def _open(self) -> None:
        self._engine = self._run(self._started(self._disk, alone=False))
        self._constraints = Constraints(self._engine.tokenizer)
        self._live: list[Heard] = []
        if self._disk is None:
            self._asked = []
        self._n_before = len(self._asked)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    async def _started(self, disk: Path | None, *, alone: bool) -> Engine:
        return type(self).launch(alone, disk)

    async def _submit(self, work: Work, whose: Whose) -> Heard:
        if not self._engine.info.adapters:
            work = work._replace(lora=0)
        elif work.lora == LOADED and "again" not in self._engine.info.adapters:
            work = work._replace(lora=1)
        plan = self._plan(self._engine, work, whose)
        heard = Heard(work, whose, self._engine.submit(plan, TENANTS[whose.tenant]))
        self._asked.append(heard)
        return heard

    def _finish(self) -> None:
        live, self._live = self._live, []
        self._run(self._ended(live))
        for heard in live:
            self._check(heard)
        counters = self._engine.counters()
        assert [counters[key] for key in ("running", "waiting", "reserved_cells", "used_cells")] == [0, 0, 0, 0]
        assert counters["free_sequences"] == N_SEQ_MAX
        assert not self._engine._worker.transfer._cache._held

    async def _ended(self, live: list[Heard]) -> None:
        async with asyncio.timeout(300):
            for heard in live:
                await heard.task
        await settled(self._engine)

    def _check(self, heard: Heard) -> None:
        if heard.refused:
            for said, truth in zip(heard.said, self._truth(heard.work), strict=True):
                assert truth[0].startswith(said[0])
            return
        assert heard.said == self._truth(heard.work)
        assert heard.generation.cached_tokens <= self._shareable(heard)

    def _shareable(self, heard: Heard) -> int:
        """How much of its prompt others have computed with whom it may share."""
        if heard.work.scored:
            return 0
        prompt, most = heard.work.prompt, 0
        for other in self._asked:
            if other is not heard and (reach := other.may_share_with(heard)):
                n_common = common(prompt, other.work.prompt)
                # what the other one answered may go on as this prompt does
                n_common = n_common if n_common < len(other.work.prompt) else len(prompt) - 1
                most = max(most, min(n_common, reach))
        return most

    def _plan(self, engine: Engine, work: Work, whose: Whose | None = None) -> Plan:
        _, cache_salt, priority, speculative = whose or Whose(0, "", 0)
        ids = {one.name: one.id for one in engine.adapters.listed()}
        return Plan(
            prompts=(array("i", work.prompt),),
            n=work.n,
            sampling=SAMPLINGS[work.sampling],
            max_tokens=work.max_tokens,
            ignore_eos=not work.grammar,
            matcher=self._matcher(work.grammar),
            top_logprobs=0 if work.scored and work.logprobs is None else work.logprobs,
            prompt_logprobs=work.scored,
            cache_salt=cache_salt,
            lora=tuple((ids[name], scale) for name, scale in LORAS[work.lora].items()),
            priority=priority,
            speculative=speculative,
            checkpoints=(work.parts[0][1],),
            media=(MediaSpan(work.span, self.pictures[work.shown - 1], 1),) if work.is_shown else (),
        )

    def _matcher(self, grammar: int) -> Matcher | None:
        ask = asked_of_completion(CompletionRequest(prompt="", guided_regex=GRAMMARS[grammar]).task())
        return None if ask is None else self._constraints.compile(ask).matcher

    def _truth(self, work: Work) -> list[Said]:
        if work not in self.truths:
            self.truths[work] = self._run(self._said_alone(work))
        return self.truths[work]

    async def _said_alone(self, work: Work) -> list[Said]:
        if work.lora == LOADED and "again" not in self._alone.info.adapters:
            await load_again(self._alone)
        heard = Heard(work, Whose(0, "", 0), self._alone.submit(self._plan(self._alone, work)))
        await heard.task
        return heard.said


async def load_again(engine: Engine) -> None:
    """A second time the adapter that it has, which others may not be given what was computed with, for all that."""
    first = engine.adapters.listed()[0]
    await engine.adapters.load("again", Path(first.path))


def common(one: list[int], other: list[int]) -> int:
    n = min(len(one), len(other))
    return next((i for i in range(n) if one[i] != other[i]), n)


@pytest.mark.parametrize("kind", KINDS)
def test_together(tiny_model: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_places, "LEAST_RAM", RAM_BYTES)

    class OfKind(Together):
        truths: ClassVar[dict[Work, list[Said]]] = {}
        pictures = GRIDS if "hybrid" in kind else PICTURES

        @staticmethod
        def launch(alone: bool, disk: Path | None) -> Engine:
            size = {"n_ctx": 8192} if alone else {"n_ctx": N_CTX * (4 if "partitioned" in kind else 1)}
            encoder = FakeEncoder(0.0 if alone else 0.003)
            ram_bytes = 0 if alone else RAM_BYTES
            below = None if disk is None else DiskCacheConfig(path=str(disk), max_bytes=DISK_BYTES, min_tokens=16)
            options = {"priorities": True, "prefill_chunk": 64, "disk_cache": below}
            drafts: dict[str, Any] = {"draft_model": "none"}
            if not alone:
                small = tiny_model(KINDS[kind][0])
                drafts = {"draft_model": ("prompt-lookup-decoding", "draft-simple"), "draft_model_path": str(small)}
                drafts |= {"draft": small, "draft_model_num_pred_tokens": 4}
            engine = start(tiny_model, kind, ram_bytes, encoder, **drafts, **options, **size)
            if not alone:
                # whatever may come is decoded
                set_times(drafter_of(engine._worker.runner), [1.0] * 64)
            # most bets on short answers are lost
            engine._worker.scheduler.LOOKAHEAD = 16
            return engine

    run_state_machine_as_test(OfKind, settings=settings(max_examples=3, stateful_step_count=20, deadline=None))
