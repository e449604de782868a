from array import array
from typing import Any, Self

from typing_extensions import disjoint_base

from llamafast._core.constraint import Constraint
from llamafast._core.invocation import Invocation
from llamafast._core.sampler import Sampler
from llamafast._core.spans import Span
from llamafast._core.vocab import Vocab

FINISH_NONE: int
FINISH_STOP: int
FINISH_LENGTH: int
FINISH_REFUSED: int
FINISH_HALTED: int
PHASE_WAITING: int
PHASE_RESTORING: int
PHASE_FOLLOWING: int
PHASE_PREFILLING: int
PHASE_DECODING: int
PHASE_PARKED: int
PHASE_ENDED: int
N_PHASES: int

@disjoint_base
class Sequence:
    def __new__(
        cls,
        vocab: Vocab,
        prompt: array[int],
        sampler: Sampler,
        *,
        tag: int,
        max_tokens: int,
        stops: tuple[bytes, ...] = (),
        stop_tokens: tuple[int, ...] = (),
        top_logprobs: int = -1,
        score_prompt: bool = False,
        show_control: bool = False,
        preserved: array[int] | None = None,
        salt: bytes = b"",
        private: bool = False,
        seed: int = 0,
        checkpoints: tuple[int, ...] = (),
        constraint: Constraint | None = None,
        spans: tuple[Span, ...] = (),
        media: tuple[object, ...] = (),
        group: int = 0,
        adapters: object = None,
        invocation: Invocation | None = None,
        budget: tuple[object, ...] | None = None,
        prediction: array[int] | None = None,
        **output_options: int,
    ) -> Self: ...
    salt: bytes
    checkpoints: tuple[int, ...]
    media: tuple[Any, ...]
    adapters: Any
    invocation: Invocation | None
    save_at: int
    @property
    def tag(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def private(self) -> bool: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_past(self) -> int: ...
    @property
    def n_max(self) -> int: ...
    @property
    def n_cached(self) -> int: ...
    @property
    def seq_id(self) -> int: ...
    @property
    def n_scored(self) -> int: ...
    @property
    def queue_seconds(self) -> float | None: ...
    @property
    def age(self) -> float: ...
    @property
    def phase(self) -> int: ...
    @property
    def n_predicted(self) -> int: ...
    @property
    def n_drafted(self) -> int: ...
    @property
    def n_accepted(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def awaited(self) -> int | None: ...
    def drop_rows(self, wanted: bool = False) -> None: ...
    def next_span(self, n: int) -> int: ...
    def cut_before(self, n: int) -> int: ...
    def cut_behind(self, n: int) -> int: ...
    def tokens(self) -> array[int]: ...
