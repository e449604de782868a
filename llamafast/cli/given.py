"""From a command line and an environment to a config: what the model is, and what is set over it.

Flags come before variables, variables before the config file, and that before defaults. Of two flags for one key the
last counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llamafast.cli.environment import CONFIG, MODEL, read_environment, strangers
from llamafast.cli.flags import add_flags, add_settings, variables
from llamafast.cli.settings import Setting, put
from llamafast.config import KEY_VARIABLE, Config, PoolConfig
from llamafast.config_file import absolute, build_config, load_tree, refuse_unsupported
from llamafast.errors import ConfigError, ModelLoadError

HOW = (
    "which model? `llamafast {command} model.gguf`, `llamafast {command} org/repo[:quant]` for one of the Hugging Face "
    "hub, or a config file"
)
_HUB_NAME = re.compile(
    r"(?:hf://|(?:https?://)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<quant>[\w./-]+))?/?",
    re.ASCII,
)
# Of a file, to know what it is.
_HEAD_BYTES = 1024
_SOURCES = ("path", "from_pretrained", "from_package")


class HubName(NamedTuple):
    """A repository, and which of its models: by what its file's name has of the type of its weights (Q4_K_M), or by the
    name of the file."""

    repo: str
    quant: str | None


class Given(NamedTuple):
    """At most one of each: a config file, and the model: a file, or a name on the hub. ``said`` is who has said so."""

    file: Path | None = None
    model: Path | HubName | None = None
    said: str = ""


class _ConfigFile(argparse.Action):
    """Where ``-c`` has a number, it is llama-server's context."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string == "-c" and str(values).isdecimal():
            add_settings(namespace, [Setting("model.n_ctx", int(values), f"-c {values}")])
        else:
            namespace.config_file = [*(namespace.config_file or ()), values]


class _NoProjector(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        add_settings(namespace, [Setting("model.mtmd", None, str(option_string))])


def add_model(command: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Which model, and every flag that is about it or the server; without ``model`` the command has an argument of its
    own for it, of the same name."""
    if model:
        text = "a GGUF, org/repo[:quant] on the Hugging Face hub, or a JSON config file"
        command.add_argument("model", nargs="?", metavar="MODEL", help=text)
    command.add_argument(
        "-c", "-C", "--config-file", action=_ConfigFile, metavar="FILE", dest="config_file", help="a JSON config file"
    )
    command.add_argument(
        "-m", "--model", dest="model_path", metavar="FILE", help="a GGUF, in place of the config's model"
    )
    command.add_argument(
        "-hf", "-hfr", "--hf-repo", dest="hub", metavar="NAME", help="org/repo[:quant], in place of the config's model"
    )
    command.add_argument("-hff", "--hf-file", dest="hub_file", metavar="NAME", help=argparse.SUPPRESS)
    command.add_argument(
        "--no-mmproj", action=_NoProjector, nargs=0, default=argparse.SUPPRESS,
        help="do without the projector that a repository on the hub, or a config, has",
    )  # fmt: skip
    command.add_argument("--api-key", type=_key, metavar="KEY", help=argparse.SUPPRESS)
    add_flags(command)


def _key(text: str) -> str:
    """An empty one is a variable that nobody has set, where somebody means to let not everybody in."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def key_of(arguments: argparse.Namespace) -> str:
    """What a server is asked with: --api-key, else the environment's; empty without either."""
    return arguments.api_key or os.environ.get(KEY_VARIABLE, "")


def config_of(
    arguments: argparse.Namespace, environ: Mapping[str, str] | None = None, *, ask_hub: bool = True
) -> Config | PoolConfig:
    """What the command line, the environment and the config file say together, and that it is supported. A name on the
    hub is looked up there, or with ``ask_hub`` false on this machine only. Raises ConfigError or ModelLoadError."""
    environ = os.environ if environ is None else environ
    for line in strangers(environ, variables()):
        print(f"llamafast: {line}", file=sys.stderr)
    given = _given(arguments, environ)
    tree = {} if given.file is None else load_tree(given.file)
    settings = [*read_environment(environ, variables()), *getattr(arguments, "settings", ())]
    if given.model is not None and "models" in tree:
        raise ConfigError(f"{given.said}: {given.file} has several models of its own")
    said = put(tree, settings)
    named = {f"model.{key}" for key in _SOURCES} & said.keys()
    if given.model is None and given.file is None and not named and "models" not in tree:
        raise ConfigError(HOW.format(command=arguments.command))
    if given.model is not None:
        _place(tree, given.model, ask_hub, said)
    try:
        _check_unicode(tree)
        config = build_config(tree)
        refuse_unsupported(config)
    except ConfigError as error:
        raise ConfigError("\n".join(_attributed(line, said, given.file) for line in str(error).split("\n"))) from error
    return config


def _given(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Given:
    """Raises ConfigError where the command line names two of one kind."""
    told = []
    if arguments.model is not None:
        told.append(_meant(arguments.model, arguments.model))
    for file in arguments.config_file or ():
        told.append(Given(file=absolute(file), said=f"-c {file}"))
    if arguments.model_path is not None:
        # vLLM's takes a name on the hub as well
        meant = _meant(arguments.model_path, f"-m {arguments.model_path}")
        told.append(Given(model=meant.file, said=meant.said) if meant.file is not None else meant)
    if arguments.hub is None and arguments.hub_file is not None:
        raise ConfigError(f"-hff {arguments.hub_file}: is a file of a repository, which -hf org/repo names")
    if arguments.hub is not None:
        if (name := hub_name(arguments.hub)) is None:
            raise ConfigError(f"-hf {arguments.hub}: is no name on the hub, such as org/repo or org/repo:Q8_0")
        told.append(Given(model=name._replace(quant=arguments.hub_file or name.quant), said=f"-hf {arguments.hub}"))
    files, models = [one for one in told if one.file is not None], [one for one in told if one.model is not None]
    for kind, ones in (("config files", files), ("models", models)):
        if len(ones) > 1:
            raise ConfigError(f"two {kind}: {ones[0].said} and {ones[1].said}")
    variables = [
        _meant(value, name) if name == MODEL else Given(file=absolute(value), said=name)
        for name in (CONFIG, MODEL)
        # whoever names a model has nothing of the variable's, be it a config
        if (value := environ.get(name)) and not (name == MODEL and models)
    ]
    file = next((one.file for one in (*files, *variables) if one.file is not None), None)
    model = next((one for one in (*models, *variables) if one.model is not None), None)
    return Given(file, None, "") if model is None else Given(file, model.model, model.said)


def _meant(text: str, said: str) -> Given:
    """A file that is there by what is in it, another one by its name. Raises ConfigError."""
    path = absolute(text)
    try:
        if path.is_dir():
            names = ", ".join(sorted(one.name for one in path.iterdir() if one.suffix in (".gguf", ".json"))[:20])
            raise ConfigError(f"{path}: is a folder" + (f"; there are {names}" if names else ""))
        if path.is_file():
            return _by_content(path, said)
        if path.exists():
            # a pipe, which is read once: nobody pipes weights
            return Given(file=path, said=said)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    name = hub_name(text)
    names_a_file = name is not None and name.quant is not None
    if path.suffix.lower() == ".gguf" and not names_a_file and not text.startswith(("http:", "https:", "hf:")):
        return Given(model=path, said=said)
    if path.suffix.lower() != ".json" and name is not None:
        return Given(model=name, said=said)
    raise ConfigError(f"{path}: no such file")


def _by_content(path: Path, said: str) -> Given:
    """Raises ConfigError for what is neither a GGUF nor, by its name or its beginning, a config file."""
    kind = path.suffix.lower()
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # whoever reads all of it will tell
        return Given(model=path, said=said) if kind == ".gguf" else Given(file=path, said=said)
    if head.startswith(b"GGUF"):
        return Given(model=path, said=said)
    if kind == ".json" or head.removeprefix(BOM_UTF8).lstrip().startswith(b"{"):
        return Given(file=path, said=said)
    raise ConfigError(f"{path}: is {'neither a GGUF nor a JSON config file' if head else 'empty'}")


def hub_name(text: str) -> HubName | None:
    """What a text names on the hub; None where it names nothing there."""
    named = _HUB_NAME.fullmatch(text)
    return None if named is None else HubName(named["repo"], named["quant"])


def _place(tree: dict[str, Any], model: Path | HubName, ask_hub: bool, said: Mapping[str, str]) -> None:
    """The model in place of the file's, unless a setting names one. Raises ConfigError or ModelLoadError."""
    if taken := [key for key in _SOURCES if f"model.{key}" in said]:
        raise ConfigError(f"two models: {said[f'model.{taken[0]}']} and the one that is named")
    section = tree.get("model") or {}
    if not isinstance(section, dict):
        return  # a fault of its own, which is told with all others
    section = {key: value for key, value in section.items() if key not in _SOURCES}
    tree["model"] = section
    if isinstance(model, Path):
        section["path"] = str(model)
        return
    from llamafast.hub import find_in_repository
    from llamafast.model_files import projector_packages

    try:
        found = find_in_repository(model.repo, model.quant, ask=ask_hub)
    except ModelLoadError as error:
        beside = absolute(f"{model.repo}{f':{model.quant}' if model.quant else ''}")
        raise ModelLoadError(f"{error}\nNor is there a file {beside}") from error
    section["from_pretrained"] = {"repo_id": model.repo, "filename": found.model}
    mtmd = section.get("mtmd") or {}
    if not isinstance(mtmd, dict) or (not mtmd and "model.mtmd" in said):
        return
    if found.projector is None or any(f"mmproj_{key}" in mtmd for key in _SOURCES):
        return
    if missing := projector_packages():
        print(
            f"llamafast: text only: the projector {found.projector} needs {' and '.join(missing)}: "
            "pip install 'llamafast[media]'",
            file=sys.stderr,
        )
        return
    section["mtmd"] = mtmd | {"mmproj_from_pretrained": {"repo_id": model.repo, "filename": found.projector}}


def _check_unicode(tree: dict[str, Any]) -> None:
    """As a file's texts are: raises ConfigError for bytes of a command line, or a variable, that are no UTF-8."""
    try:
        json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 40) : error.end].rpartition('"')[2]
        raise ConfigError(f"{ascii(near)[1:-1]}: is not valid Unicode") from error


def _attributed(fault: str, said: Mapping[str, str], file: Path | None) -> str:
    """A fault with whoever has brought it in."""
    path = fault.partition(": ")[0]
    who = said.get(path) or next(
        (
            who
            for key, who in said.items()
            if path.startswith((f"{key}.", f"{key}[")) or key.startswith((f"{path}.", f"{path}["))
        ),
        None,
    )
    return f"{who or file}: {fault}" if who or file else fault
