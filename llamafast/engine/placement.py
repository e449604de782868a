"""What computes, and all that follows from it: devices, threads, CPUs left to them, nodes of ours."""

from __future__ import annotations

from msgspec import Struct

from llamafast._core.model import Model, supports_gpu_offload
from llamafast.config import ModelConfig
from llamafast.engine.threads import physical_cores

# enum llama_split_mode of llama.h; without any GPU it goes with a negative main_gpu
SPLIT_MODE_NONE, SPLIT_MODE_TENSOR, NO_GPU = 0, 3, -1
# The type of buffers that CPUs have.
CPU = "CPU"


class Placement(Struct, frozen=True, kw_only=True):
    """What can be decided before a model is loaded. ``split_mode`` and ``main_gpu`` are llama.h's, None its default;
    ``threads`` decode, ``threads_batch`` compute prompts; where ``choose_threads``, a step takes as many of them as
    have been the fastest."""

    on_cpu: bool
    split_mode: int | None
    main_gpu: int | None
    threads: int
    threads_batch: int
    choose_threads: bool

    @property
    def n_computing(self) -> int:
        """CPUs that nobody else is to use. Where a GPU computes, threads wait for it and meet at no barriers that a
        neighbour could hold up: confining the wire would take CPUs from it for nothing."""
        return max(self.threads, self.threads_batch) if self.on_cpu else 0


def placement_of(config: ModelConfig) -> Placement:
    """Where a model is to be computed. A thread that is confined to some CPUs counts only those."""
    split_mode: int | None = config.split_mode
    main_gpu = config.main_gpu
    moves = any(where != CPU for _, where in config.tensor_buft_overrides)
    if config.n_gpu_layers == 0 and not config.op_offload and not moves:
        # no layer nor tensor, and nobody asks for the products of large batches either: then no GPU is set up at all
        split_mode, main_gpu = SPLIT_MODE_NONE, NO_GPU
    without_gpu = split_mode == SPLIT_MODE_NONE and main_gpu is not None and main_gpu < 0
    if config.device_names is not None:
        has_devices = bool(config.device_names)
    else:
        has_devices = bool(config.rpc_servers) or supports_gpu_offload()
    on_cpu = without_gpu or not has_devices
    threads = config.threads or physical_cores()
    return Placement(
        on_cpu=on_cpu,
        split_mode=split_mode,
        main_gpu=main_gpu,
        threads=threads,
        threads_batch=config.threads_batch or threads,
        # the time of a step on a GPU says nothing of threads
        choose_threads=on_cpu and config.threads is None and config.threads_batch is None,
    )


def computes_bare(model: Model) -> bool:
    """Whether llama.cpp computes its graphs all by itself: only CPUs can compute nodes of ours."""
    return not model.on_cpu
