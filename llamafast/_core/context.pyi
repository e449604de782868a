from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.model import Model

UNLIMITED: int

@disjoint_base
class Batch:
    capacity: int
    n_seq_max: int
    def __new__(cls, capacity: int, n_seq_max: int = 1) -> Self: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def add(self, token: int, pos: int, seq_id: int, output: bool) -> None: ...
    def advance(self) -> None: ...

@disjoint_base
class Context:
    model: Model
    embeddings: bool
    unified: bool
    n_cuttable: int
    scratch: int
    def __new__(
        cls,
        model: Model,
        *,
        n_ctx: int | None = None,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_seq_max: int | None = None,
        n_rs_seq: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = None,
        pooling_type: int | None = None,
        attention_type: int | None = None,
        flash_attn_type: int | None = None,
        embeddings: bool | None = None,
        rope_freq_base: float | None = None,
        rope_freq_scale: float | None = None,
        yarn_ext_factor: float | None = None,
        yarn_attn_factor: float | None = None,
        yarn_beta_fast: float | None = None,
        yarn_beta_slow: float | None = None,
        yarn_orig_ctx: int | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        offload_kqv: bool | None = None,
        no_perf: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        kv_unified: bool | None = None,
        bare: bool = False,
    ) -> Self: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_ctx_seq(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def n_seq_max(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def n_threads_batch(self) -> int: ...
    @property
    def pooling_type(self) -> int: ...
    @property
    def has_memory(self) -> bool: ...
    @property
    def n_direct(self) -> int: ...
    @property
    def n_attention(self) -> int: ...
    def decode(self, batch: Batch) -> int: ...
    def clear(self) -> None: ...
    def seq_rm(self, seq_id: int, p0: int, p1: int) -> bool: ...
    def seq_pos_max(self, seq_id: int) -> int: ...
