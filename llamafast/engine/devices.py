"""Which devices a config means, and what weights may lie in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llamafast._core import devices as core
from llamafast._core.devices import Device
from llamafast.config import ModelConfig
from llamafast.engine.placement import CPU, SPLIT_MODE_NONE, SPLIT_MODE_TENSOR, placement_of
from llamafast.engine.rpc_servers import connect, connected
from llamafast.errors import ConfigError

# The backend of devices on other machines; the types of what layers can go to.
RPC, OFFLOADED = "RPC", ("GPU", "IGPU")


class Devices(NamedTuple):
    """``names`` are for llama_model_params, None where llama.cpp is to choose; ``used`` are those that it will use.
    Where it uses them ``as_one`` that one has buffers which nobody can name."""

    names: list[str] | None
    used: list[Device]
    as_one: bool = False

    def buffers(self) -> dict[str, str]:
        """What weights may be put into, by all names of it: the type's own, and the device's."""
        apart = [] if self.as_one else self.used
        own = {device.buffers: device.buffers for device in apart}
        return {CPU: CPU} | own | {device.name: device.buffers for device in apart}


def devices_of(config: ModelConfig) -> Devices:
    """Those that the config names, or all that llama.cpp would take. Its RPC servers become devices here. Raises
    ConfigError, which names what there is."""
    placement = placement_of(config)
    if config.device_names == ():
        return Devices([], [])
    if placement.on_cpu and config.rpc_servers:
        raise ConfigError("model.rpc_servers: have nothing to compute: n_gpu_layers or main_gpu leave it all to CPUs")
    if placement.on_cpu and config.device_names is None:
        # servers of another model in this process are none of this one's
        return Devices([] if connected() else None, [])
    connect(config.rpc_servers)
    there = [device for device in core.devices(config.rpc_servers) if device.type in OFFLOADED]
    if config.device_names is not None:
        chosen = _named(config.device_names, there)
        names: list[str] | None = list(config.device_names)
    else:
        chosen = _by_default(there)
        names = [device.name for device in chosen] if connected() else None
    if placement.on_cpu:
        return Devices(names, [])
    if config.split_mode == SPLIT_MODE_NONE:
        first = placement.main_gpu or 0
        chosen = chosen[first : first + 1]
    return Devices(names, chosen, as_one=config.split_mode == SPLIT_MODE_TENSOR)


def encoding_device(config: ModelConfig) -> str | None:
    """The name of the device that encodes media for the model, None for CPUs: the first of the model's that is of this
    machine, as the process that does it knows no others. Raises ConfigError."""
    return next((device.name for device in devices_of(config).used if device.backend != RPC), None)


def in_words(devices: Iterable[Device]) -> str:
    """With what is free on each."""
    told = [f"{one.name} ({one.description}, {one.free / 1e9:.2f} GB free)" for one in devices]
    return ", ".join(told) or "CPUs alone"


def _named(names: Iterable[str], there: list[Device]) -> list[Device]:
    known = {device.name: device for device in there}
    for name in names:
        if name not in known:
            choice = f"there are {', '.join(known)}" if known else "there is none but CPUs"
            raise ConfigError(f'model.devices: {name} is no device here; {choice}, and "none"')
    return [known[name] for name in names]


def _by_default(there: list[Device]) -> list[Device]:
    """As llama.cpp chooses: those of other machines first, then each card once, and what shares the machine's own
    memory only where there is no card."""
    remote = [device for device in there if device.backend == RPC]
    cards: list[Device] = []
    for device in there:
        is_new = device.id is None or device.id not in {card.id for card in cards}
        if device.type == "GPU" and device.backend != RPC and is_new:
            cards.append(device)
    shared = [device for device in there if device.type == "IGPU"]
    return remote + (cards or [device for device in shared if device.backend == shared[0].backend])
