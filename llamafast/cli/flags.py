"""Flags that set a config's keys: our own, and those of llama-server and vLLM whose meaning is plain."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from llamafast.cli.answers import ANSWERS
from llamafast.cli.settings import Setting, read_value
from llamafast.errors import ConfigError

Told = dict[str, Any]


class Flag(NamedTuple):
    """``meaning`` is a key, or a function from the flag's value to keys and theirs (a key that ends with + is a list's,
    to which the value, or each of a list of them, is added). Without a ``metavar`` it takes no value, and gives
    ``value``; one that ``may_be_bare`` is "on" without a value. ``text`` is its help; other servers' flags are not in
    it."""

    names: tuple[str, ...]
    meaning: str | Callable[[str], Told]
    metavar: str = "VALUE"
    text: str = argparse.SUPPRESS
    value: Any = None
    may_be_bare: bool = False


def _number(key: str) -> Callable[[str], Told]:
    """Whose -1 and auto leave it open."""
    return lambda text: {key: None if text in ("-1", "auto") else read_value(key, text)}


def _slots(text: str) -> Told:
    """Bare it is llama-server's, and turns on what is always there: GET /slots."""
    return {} if text == "on" else _number("model.n_seq_max")(text)


def _layers(text: str) -> Told:
    return {"model.n_gpu_layers": {"all": -1, "auto": None}.get(text, read_value("model.n_gpu_layers", text))}


def _flash(text: str) -> Told:
    values = {"on": True, "off": False, "auto": None, "1": True, "0": False, "true": True, "false": False, "-1": None}
    return {"model.flash_attn": _one_of(text, values)}


def _names(text: str) -> Told:
    first, *more = text.replace(" ", ",").split(",")
    return {"model.alias": first, **({"model.aliases": more} if more else {})}


def _mib(text: str) -> Told:
    if not text.isdecimal():
        raise ConfigError("is a number of MiB; cache.ram_bytes: null leaves a quarter of what is there")
    return {"cache.ram_bytes": int(text) * 2**20}


def _cache_types(text: str) -> Told:
    if text == "auto":
        return {"model.type_k": None, "model.type_v": None}
    return {"model.type_k": text, "model.type_v": text}


def _scaled(text: str) -> Told:
    path, _, scale = text.rpartition(":")
    return {"model.loras+": {"path": path, "scale": read_value("", scale)} if path else {"path": text}}


def _lora(text: str) -> Told:
    name, equals, path = text.partition("=")
    return {"model.loras+": {"name": name, "path": path} if equals else {"path": text}}


def _template(text: str) -> Told:
    if "{" not in text and text != "chatml":
        raise ConfigError("is a Jinja text here, or chatml; --chat-template-file names a file of one")
    return {"model.chat_template": text}


def _template_file(text: str) -> Told:
    try:
        return {"model.chat_template": Path(text).expanduser().read_text(encoding="utf-8")}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{Path(text).absolute()}: {getattr(error, 'strerror', None) or error}") from error


def _choice(key: str, *names: str) -> Callable[[str], Told]:
    """Whose value is a number in the config, in llama.h's order."""
    return lambda text: {key: _one_of(text, {name: i for i, name in enumerate(names)})}


def _list(key: str) -> Callable[[str], Told]:
    return lambda text: {key: [read_value("", part) for part in text.split(",")]}


def _origins(text: str) -> Told:
    """A list as JSON has it, which is vLLM's, or with commas, which is llama-server's."""
    told = read_value("server.cors_origins", text)
    return {"server.cors_origins": told if isinstance(told, list) else text.split(",")}


def _idle(text: str) -> Told:
    return {"model.ttl_seconds": None if text == "-1" else read_value("model.ttl_seconds", text)}


def _devices(text: str) -> Told:
    return {"model.devices": text if text == "none" else text.split(",")}


def _overrides(text: str) -> Told:
    """Commas part them, and may be in a pattern: one ends where a type has ended."""
    if not (parts := re.findall(r"(.+?=[\w.:\[\]-]+)(?:,|\Z)", text)) or ",".join(parts) != text:
        raise ConfigError("is PATTERN=TYPE, such as 'ffn_.*_exps=CPU', and more of them behind commas")
    return {"model.override_tensors+": parts}


def _one_of(text: str, values: dict[str, Any]) -> Any:
    if text not in values:
        raise ConfigError(f"is one of {', '.join(values)}")
    return values[text]


OWN = (
    Flag(("--host",), "server.host", "HOST", "where to listen (127.0.0.1)"),
    Flag(("--port",), "server.port", "PORT", "0: any that is free (8000)"),
    Flag(("--alias", "-a", "--served-model-name"), _names, "NAME", "what clients call the model (the file's name)"),
    Flag(
        ("--ctx", "--ctx-size", "--n-ctx"), "model.n_ctx", "TOKENS",
        "of all requests together (what the model was trained for, or what fits)",
    ),
    Flag(
        ("--slots", "-np", "--parallel", "--max-num-seqs"), _slots, "N", "answers at once (64)", may_be_bare=True
    ),
    Flag(("--threads", "-t"), _number("model.threads"), "N", "that compute (as many as are fastest)"),
    Flag(("--gpu-layers", "-ngl", "--n-gpu-layers"), _layers, "N", "of the model on GPUs (all)"),
    Flag(("--api-key-file",), "server.api_key_file", "FILE", "who may use the server, a key a line"),
    Flag(("--mmproj", "-mm"), "model.mtmd.mmproj_path", "FILE", "the projector, for pictures and sound"),
)  # fmt: skip
FOREIGN = (
    Flag(("-ctk", "--cache-type-k"), "model.type_k"),
    Flag(("-ctv", "--cache-type-v"), "model.type_v"),
    Flag(("--kv-cache-dtype",), _cache_types),
    Flag(("-fa", "--flash-attn"), _flash, may_be_bare=True),
    Flag(("-tb", "--threads-batch"), _number("model.threads_batch")),
    Flag(("-b", "--batch-size", "--max-num-batched-tokens"), "model.n_batch"),
    Flag(("-ub", "--ubatch-size"), "model.n_ubatch"),
    Flag(("--max-model-len",), "model.max_seq_len"),
    Flag(("-kvu", "--kv-unified"), "model.kv_unified", "", value=True),
    Flag(("-no-kvu", "--no-kv-unified"), "model.kv_unified", "", value=False),
    Flag(("--mlock",), "model.use_mlock", "", value=True),
    Flag(("--mmap",), "model.use_mmap", "", value=True),
    Flag(("--no-mmap",), "model.use_mmap", "", value=False),
    Flag(("-kvo", "--kv-offload"), "model.offload_kqv", "", value=True),
    Flag(("-nkvo", "--no-kv-offload"), "model.offload_kqv", "", value=False),
    Flag(("--op-offload",), "model.op_offload", "", value=True),
    Flag(("--no-op-offload",), "model.op_offload", "", value=False),
    Flag(("--swa-full",), "model.swa_full", "", value=True),
    Flag(("--embedding", "--embeddings"), "model.embedding", "", value=True),
    Flag(("--pooling",), _choice("model.pooling_type", "none", "mean", "cls", "last", "rank")),
    Flag(("-sm", "--split-mode"), _choice("model.split_mode", "none", "layer", "row", "tensor")),
    Flag(("-mg", "--main-gpu"), "model.main_gpu"),
    Flag(("-ts", "--tensor-split"), _list("model.tensor_split")),
    Flag(("-dev", "--device"), _devices),
    Flag(("-ncmoe", "--n-cpu-moe"), "model.n_cpu_moe"),
    Flag(("-cmoe", "--cpu-moe"), "model.n_cpu_moe", "", value="all"),
    Flag(("-ot", "--override-tensor"), _overrides),
    Flag(("--numa",), "model.numa"),
    Flag(("--rpc",), lambda text: {"model.rpc_servers": text.split(",")}),
    Flag(("--rope-scaling",), _choice("model.rope_scaling_type", "none", "linear", "yarn", "longrope")),
    Flag(("--rope-freq-base",), "model.rope_freq_base"),
    Flag(("--rope-freq-scale",), "model.rope_freq_scale"),
    Flag(("--yarn-orig-ctx",), "model.yarn_orig_ctx"),
    Flag(("--yarn-ext-factor",), "model.yarn_ext_factor"),
    Flag(("--yarn-attn-factor",), "model.yarn_attn_factor"),
    Flag(("--yarn-beta-slow",), "model.yarn_beta_slow"),
    Flag(("--yarn-beta-fast",), "model.yarn_beta_fast"),
    Flag(("--lora", "--lora-modules"), _lora),
    Flag(("--lora-scaled",), _scaled),
    Flag(("--chat-template",), _template),
    Flag(("--chat-template-file",), _template_file),
    Flag(("-cram", "--cache-ram"), _mib),
    Flag(("--image-max-tokens",), "model.mtmd.image_max_tokens"),
    Flag(("--ssl-cert-file", "--ssl-certfile"), "server.ssl_certfile"),
    Flag(("--ssl-key-file", "--ssl-keyfile"), "server.ssl_keyfile"),
    Flag(("--ssl-ca-certs",), "server.ssl_ca_certs"),
    Flag(("--uds",), "server.uds"),
    Flag(("--webui", "--ui"), "server.page", "", value=True),
    Flag(("--no-webui", "--no-ui"), "server.page", "", value=False),
    Flag(("--cors-origins", "--allowed-origins"), _origins),
    Flag(("--sleep-idle-seconds",), _idle),
    Flag(("--spm-infill",), "model.spm_infill", "", value=True),
    Flag(("--enable-log-requests",), "server.request_log", "", value=True),
    Flag(("--disable-log-requests", "--no-enable-log-requests"), "server.request_log", "", value=False),
)
# Of llama-server and vLLM: what they turn on is always so here.
ALWAYS = (
    "--jinja", "-cb", "--cont-batching", "--metrics", "--props", "--cache-prompt", "--enable-prefix-caching",
    "--enable-auto-tool-choice", "--enable-chunked-prefill", "--enable-prompt-tokens-details", "--warmup",
)  # fmt: skip


class _Take(argparse.Action):
    """Appends what a flag says to the settings, in the order of the command line."""

    def __init__(self, *, flag: Flag, **options: Any) -> None:
        super().__init__(**options | {"dest": "settings", "default": argparse.SUPPRESS})
        self._flag = flag

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        flag, name = self._flag, str(option_string)
        if not flag.metavar:
            told, said = {str(flag.meaning): flag.value}, name
        else:
            text = "on" if values is None else str(values)
            said = f"{name} {text}"
            try:
                told = flag.meaning(text) if callable(flag.meaning) else {flag.meaning: read_value(flag.meaning, text)}
            except ConfigError as error:
                refuse(parser, f"{said}: {error}")
        add_settings(namespace, (Setting(key.rstrip("+"), value, said, key[-1] == "+") for key, value in told.items()))


class _Set(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        key, equals, text = str(values).partition("=")
        if not equals or not key:
            refuse(parser, f"--set {values}: is KEY=VALUE, such as model.n_ctx=8192")
        add_settings(namespace, [Setting(key, read_value(key, text), f"--set {values}")])


class _Answer(argparse.Action):
    """Says what to do in place of a flag, and ends."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        refuse(parser, f"{option_string}: {ANSWERS[str(option_string)]}")


class _Always(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Nothing to do: it is so."""


def refuse(parser: argparse.ArgumentParser, text: str) -> NoReturn:
    """End as argparse does, without the usage, in which the text would be lost."""
    parser.exit(2, f"{parser.prog}: {text}\n")


def add_settings(namespace: argparse.Namespace, settings: Iterable[Setting]) -> None:
    namespace.settings = [*getattr(namespace, "settings", ()), *settings]


def add_flags(command: argparse.ArgumentParser) -> None:
    """All of them; what they say is in ``settings`` of what is parsed."""
    group = command.add_argument_group("settings, over those of a config file")
    for flag in OWN:
        group.add_argument(
            *flag.names, action=_Take, flag=flag, nargs=_n_values(flag), metavar=flag.metavar, help=flag.text
        )
    group.add_argument(
        "--set", action=_Set, default=argparse.SUPPRESS, metavar="KEY=VALUE",
        help="any key of the config, such as model.n_ctx=8192",
    )  # fmt: skip
    for flag in FOREIGN:
        command.add_argument(*flag.names, action=_Take, flag=flag, nargs=_n_values(flag), help=argparse.SUPPRESS)
    hidden: dict[str, Any] = {"dest": "answered", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for name in ALWAYS:
        command.add_argument(name, action=_Always, nargs=0, **hidden)
    for name in ANSWERS:
        command.add_argument(name, action=_Answer, nargs="?", **hidden)


def _n_values(flag: Flag) -> Any:
    return "?" if flag.may_be_bare else None if flag.metavar else 0


def variables() -> dict[str, str]:
    """The keys that have a variable of a name of their own, by its end: ``CTX``."""
    keys = {"alias": "model.alias", "slots": "model.n_seq_max", "threads": "model.threads"}
    keys |= {"gpu-layers": "model.n_gpu_layers"}
    names = (flag.names[0].removeprefix("--") for flag in OWN)
    plain = {flag.names[0].removeprefix("--"): flag.meaning for flag in OWN if isinstance(flag.meaning, str)}
    return {name.upper().replace("-", "_"): (keys | plain)[name] for name in names}
