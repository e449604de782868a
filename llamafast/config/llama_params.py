"""What of the section ``model`` llama.h takes: how a model is loaded, where it lies, and what its context is like.

msgspec lays fields out one struct behind the other: of structs with fields only one can be a base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from llamafast.config.fields import CacheType, Int, KvValue, Natural, Real, Section, Text, cache_type, is_quantised

KV_STRING_BYTES = 127  # char[128] in llama.h, with its closing NUL
# Of a pattern: more is nobody's, and libstdc++ reads one by calling itself.
MAX_PATTERN = 1024
MAX_RPC_SERVERS = 16  # GGML_RPC_MAX_SERVERS

# enum ggml_numa_strategy, in its order
NumaStrategy: TypeAlias = Literal["disabled", "distribute", "isolate", "numactl", "mirror"]
# llama.cpp looks a name up as IPv4 and ends it at its first colon.
RpcServer = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}\Z")]


class LoadConfig(Section, frozen=True, kw_only=True):
    """What llama_model_params has by the same names, and gets as it stands."""

    n_gpu_layers: Int | None = None  # negative: all
    tensor_split: tuple[Annotated[float, Meta(ge=0, le=3.4e38)], ...] | None = None
    kv_overrides: dict[str, KvValue] | None = None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        for key, value in (self.kv_overrides or {}).items():
            if not 1 <= len(key.encode()) <= KV_STRING_BYTES or "\0" in key:
                yield "kv_overrides", f"a key must have 1 to {KV_STRING_BYTES} bytes and no NUL"
            elif isinstance(value, str) and (len(value.encode()) > KV_STRING_BYTES or "\0" in value):
                yield "kv_overrides", f"the value of {key} must have at most {KV_STRING_BYTES} bytes and no NUL"

    @property
    def llama_model_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LoadConfig.__annotations__}


class PlacementConfig(LoadConfig, frozen=True, kw_only=True):
    """Where weights lie and what computes with them.

    ``devices``: those that may have layers, by llama.cpp's names (null: all there are). ``override_tensors``: types of
    buffers by patterns of tensors' names, as a map or as llama-server's ``pattern=type``; the first that matches
    counts, and all come before ``n_cpu_moe``, which leaves the experts of so many layers, from the first on, to CPUs.
    ``rpc_servers``: machines whose devices are devices here too. ``numa``: how threads go to a machine's nodes.
    """

    split_mode: Literal[0, 1, 2, 3] | None = None
    main_gpu: Int | None = None
    devices: tuple[Text, ...] | Literal["none"] | None = None
    n_cpu_moe: Natural | Literal["all"] = 0
    override_tensors: dict[str, Text] | tuple[Text, ...] | None = None
    numa: NumaStrategy = "disabled"
    rpc_servers: tuple[RpcServer, ...] = ()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        names = self.device_names or ()
        for name in twice(names):
            yield "devices", f"{name} is there twice"
        if "none" in names:
            yield "devices", '"none" stands alone'
        for pattern, where in self.tensor_buft_overrides:
            if isinstance(self.override_tensors, tuple) and not (pattern and where):
                yield "override_tensors", f"{pattern or where} is no pattern=type, such as ffn_.*_exps=CPU"
            elif not 1 <= len(pattern.encode()) <= MAX_PATTERN or "\0" in pattern:
                yield "override_tensors", f"a pattern must have 1 to {MAX_PATTERN} bytes and no NUL"
        yield from self._rpc_conflicts()

    def _rpc_conflicts(self) -> Iterator[tuple[str, str]]:
        for name in twice(self.rpc_servers):
            yield "rpc_servers", f"{name} is there twice"
        for name in self.rpc_servers:
            if not 0 < int(name.rpartition(":")[2]) < 2**16:
                yield "rpc_servers", f"{name} has no port between 1 and 65535"
        if len(self.rpc_servers) > MAX_RPC_SERVERS:
            yield "rpc_servers", f"llama.cpp takes at most {MAX_RPC_SERVERS}"
        if self.rpc_servers and self.device_names == ():
            yield "rpc_servers", "have nothing to compute where devices are none"

    @property
    def device_names(self) -> tuple[str, ...] | None:
        """() for no device but CPUs; None where llama.cpp is to choose."""
        return () if self.devices in ("none", ("none",)) else self.devices  # type: ignore[return-value]

    @property
    def tensor_buft_overrides(self) -> list[tuple[str, str]]:
        """Patterns and types of buffers, in their order."""
        if isinstance(self.override_tensors, dict):
            return list(self.override_tensors.items())
        parts = [text.rpartition("=") for text in self.override_tensors or ()]
        return [(pattern, where) for pattern, _, where in parts]


class ContextConfig(PlacementConfig, frozen=True, kw_only=True):
    """What llama_context_params has by the same names, and gets as it stands."""

    rope_scaling_type: Literal[-1, 0, 1, 2, 3] | None = None
    attention_type: Literal[-1, 0, 1] | None = None
    rope_freq_base: Real | None = None
    rope_freq_scale: Real | None = None
    yarn_ext_factor: Real | None = None
    yarn_attn_factor: Real | None = None
    yarn_beta_fast: Real | None = None
    yarn_beta_slow: Real | None = None
    yarn_orig_ctx: Natural | None = None
    type_k: CacheType | None = None
    type_v: CacheType | None = None
    offload_kqv: bool | None = None
    op_offload: bool | None = None
    swa_full: bool | None = None
    no_perf: bool | None = None
    kv_unified: bool = True

    @property
    def llama_context_params(self) -> dict[str, Any]:
        params = {name: getattr(self, name) for name in ContextConfig.__annotations__}
        return params | {"type_k": cache_type(self.type_k), "type_v": cache_type(self.type_v)}

    @property
    def quantises_cache(self) -> bool:
        return is_quantised(self.type_k) or is_quantised(self.type_v)


def twice(names: Sequence[str]) -> list[str]:
    """Those that are there more than once."""
    return sorted({name for name in names if names.count(name) > 1})
