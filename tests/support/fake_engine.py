"""An engine without a model: scripted Events behind the real door (``engine.types.EnginePort``)."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from llamafast.engine.activity import Activity
from llamafast.engine.adapter_info import AdapterInfo, AdaptersPort, AdapterUse
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.slot_info import SlotInfo
from llamafast.engine.types import ANYBODY, Event, FinishReason, Generation, Histogram, ModelInfo, Plan, Tenant
from llamafast.errors import AdapterNotFound, InvalidRequest, LlamafastError

BOS = 256
EOS = 257
N_VOCAB = 258

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

INFO = ModelInfo(
    id="org/fake-model",
    created=1_700_000_000,
    n_vocab=N_VOCAB,
    n_ctx_train=4096,
    max_seq_len=512,
    n_seq_max=8,
    max_output_tokens=None,
    chat_template=TEMPLATE,
    longest_piece=4,
    bos_text="<s>",
    eos_text="</s>",
    description="fake",
    control_tokens=("<s>", "</s>"),
)


class ByteTokenizer:
    """One token per UTF-8 byte, BOS and EOS beside them; their texts are control tokens where special is parsed."""

    _CONTROL = ((b"<s>", BOS), (b"</s>", EOS))

    n_tokens = N_VOCAB
    llama_pointers = None

    def piece(self, token: int) -> bytes:
        return {BOS: b"<s>", EOS: b"</s>"}.get(token) or bytes([token])

    def is_control(self, token: int) -> bool:
        return token in (BOS, EOS)

    def eog_tokens(self) -> list[int]:
        return [EOS]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        raw, tokens = text.encode(), array("i", [BOS] if add_special else [])
        at = 0
        while at < len(raw):
            name, token = next(
                (c for c in self._CONTROL if parse_special and raw.startswith(c[0], at)), (raw[at : at + 1], raw[at])
            )
            tokens.append(token)
            at += len(name)
        return tokens

    def detokenize(self, tokens: array[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def text(self, token: int) -> str:
        return self.piece(token).decode(errors="replace") if 0 <= token < N_VOCAB else ""

    def pair(self, first: array[int], second: array[int]) -> array[int]:
        return first + array("i", [EOS]) + second[1:]


class ScriptedGeneration:
    """Plays batches of Events: an exception in the script is raised there, a float sleeps that many seconds, an int
    tells that so many tokens of the prompts are in memory."""

    def __init__(self, plan: Plan, script: Sequence[Step], cached_tokens: int, tenant: Tenant) -> None:
        self.plan = plan
        self.tenant = tenant
        self.prompt_tokens = sum(map(len, plan.prompts))
        self.completion_tokens = self.processed_tokens = 0
        self.cached_tokens = cached_tokens
        self.cancelled = False
        self.finished = False
        self.finish_reasons: set[FinishReason] = set()
        self.media_tokens = plan.media_tokens()
        self.predicted_tokens = (0, len(plan.prediction)) if plan.prediction else None
        self.drafted_tokens = (0, 0)
        self.queue_seconds: float | None = 0.001
        self.first_token_seconds: float | None = 0.002
        self._script = script
        self._steps = iter(script)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Event]:
        for step in self._steps:
            if self.cancelled:
                await asyncio.get_running_loop().create_future()  # nothing more comes
            if isinstance(step, Exception):
                self.finished = True
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, int):
                await asyncio.sleep(0)
                self.processed_tokens = step
                return [Event(0, "", 0)]
            else:
                await asyncio.sleep(0)
                self.processed_tokens = self.prompt_tokens
                self.completion_tokens += sum(event.n_tokens for event in step)
                self.finish_reasons |= {event.finish_reason for event in step if event.finish_reason}
                return [replace(event) for event in step]
        self.finished = True
        raise StopAsyncIteration

    async def begin(self, seconds: float) -> None:
        """An exception that the script begins with is raised here."""
        if self._script and isinstance(self._script[0], Exception):
            raise self._script[0]

    def cancel(self) -> None:
        if not self.finished:
            self.cancelled = True


Step = list[Event] | float | int | asyncio.Event | Exception
Script = Callable[[Plan], Sequence[Step]]


def say(*texts: str, reason: str = "stop") -> Script:
    """Every choice says ``texts``, one token and one batch each, then ends with a token of no text."""

    def script(plan: Plan) -> list[Step]:
        n_choices = len(plan.prompts) * plan.n
        steps: list[Step] = [[Event(index, text, 1) for index in range(n_choices)] for text in texts]
        steps.append([Event(index, "", 1, reason) for index in range(n_choices)])
        return steps

    return script


def play(*steps: Step) -> Script:
    """Exactly ``steps``, whatever the Plan."""
    return lambda plan: steps


class FakeAdapters:
    """Scales that were applied, by id. ``may_load`` holds loading up until it is set; ``loading``: it has begun."""

    def __init__(self, infos: list[AdapterInfo]) -> None:
        self._infos = infos
        self.names = [info.name for info in infos if info.name is not None]
        self.applied: list[dict[int, float]] = []
        self.loading = asyncio.Event()
        self.may_load = asyncio.Event()
        self.may_load.set()

    def listed(self) -> list[AdapterInfo]:
        scales = self.applied[-1] if self.applied else {}
        return [replace(info, scale=scales.get(info.id, 0.0)) for info in self._infos]

    def apply(self, chosen: Iterable[tuple[int, float]]) -> None:
        pairs = list(chosen)
        if {id for id, _ in pairs} - set(range(len(self._infos))) or len(dict(pairs)) < len(pairs):
            raise InvalidRequest("`lora`: there is no such adapter, or twice", param="lora")
        self.applied.append(dict(pairs))

    async def load(self, name: str, path: Path, scale: float = 1.0) -> None:
        if name in self.names:
            raise InvalidRequest(f"the name {name!r} is taken", param="lora_name")
        self.loading.set()
        await self.may_load.wait()
        self._infos.append(AdapterInfo(len(self._infos), name, str(path), 0.0))
        self.names.append(name)

    async def unload(self, name: str) -> None:
        if name not in self.names:
            raise AdapterNotFound(name)
        self.names.remove(name)
        self._infos = [info for info in self._infos if info.name != name]

    def uses(self) -> list[AdapterUse]:
        return [AdapterUse(info.id, info.name, 3, 2, 1) for info in self._infos]


class FakeEngine:
    """Answers each Plan by ``script`` and remembers its Generations; ``refusal``, when set, is raised in its place.

    ``retry_seconds`` is what ``retry_after`` says, ``saved_bytes`` what ``reset_prefix_cache`` frees.
    """

    def __init__(self, script: Script | None = None, *, info: ModelInfo = INFO) -> None:
        self.tokenizer = ByteTokenizer()
        self.script = script or say("Hello", " world")
        self.refusal: LlamafastError | None = None
        self.generations: list[ScriptedGeneration] = []
        self.prepared: list[Plan] = []
        self.embedding_plans: list[EmbeddingPlan] = []
        infos = [AdapterInfo(i, name, f"{i}.gguf", 0.0) for i, name in enumerate(info.adapters)]
        self.adapters: AdaptersPort = FakeAdapters(infos)
        self.info = replace(info, adapters=self.adapters.names)
        self.embedding_tenants: list[Tenant] = []
        self.submitted = asyncio.Event()
        self.cached_tokens = 0
        self.stalled_seconds = 0.0
        self.retry_seconds = 1.0
        self.saved_bytes = 0
        self.running_slots: list[SlotInfo] = []
        self.series: dict[str, float] = {}
        self.distributions: dict[str, Histogram] = {}
        self.seen = Activity(0, [], [], [])

    @property
    def plan(self) -> Plan:
        """The only Plan submitted so far."""
        (generation,) = self.generations
        return generation.plan

    async def prepare(self, plan: Plan) -> None:
        self.prepared.append(plan)

    def submit(self, plan: Plan, tenant: Tenant = ANYBODY) -> Generation:
        if self.refusal is not None:
            raise self.refusal
        generation = ScriptedGeneration(plan, self.script(plan), self.cached_tokens, tenant)
        self.generations.append(generation)
        self.submitted.set()
        return generation

    async def embed(self, plan: EmbeddingPlan, tenant: Tenant = ANYBODY) -> list[bytes]:
        """The vector of an input is its first tokens, ``dimensions`` or as many as the model's width."""
        if self.refusal is not None:
            raise self.refusal
        self.embedding_plans.append(plan)
        self.embedding_tenants.append(tenant)
        await asyncio.sleep(0)
        info = self.info.embedding
        assert info is not None
        width = plan.dimensions or info.width
        if info.pooling == "none":
            return [array("f", [token for token in tokens for _ in range(width)]).tobytes() for tokens in plan.inputs]
        return [array("f", [*tokens, *[0] * width][:width]).tobytes() for tokens in plan.inputs]

    def retry_after(self) -> float:
        return self.retry_seconds

    async def reset_prefix_cache(self) -> int:
        if self.refusal is not None:
            raise self.refusal
        freed, self.saved_bytes = self.saved_bytes, 0
        return freed

    def slots(self) -> list[SlotInfo]:
        return self.running_slots

    def stalled(self) -> float:
        return self.stalled_seconds

    def counters(self) -> dict[str, float]:
        return self.series

    def histograms(self) -> dict[str, Histogram]:
        return self.distributions

    def activity(self) -> Activity:
        return self.seen
