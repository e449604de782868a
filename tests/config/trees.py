"""JSON trees of cfg.json, and what comes of parsing them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from llamafast import config as shapes
from llamafast.config_file import parse_config
from llamafast.errors import ConfigError

PRETRAINED = {"repo_id": "org/repo", "filename": "m.gguf"}
PACKAGE = {"package": "some-package", "filename": "m.gguf"}


def parse(tree: Any) -> shapes.Config:
    return parse_config(json.dumps(tree).encode())


def parse_model(**fields: Any) -> shapes.ModelConfig:
    return parse({"model": {"path": "m.gguf", **fields}}).model


def faults(tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    return str(caught.value).split("\n")


def minimal(section: str) -> dict[str, Any]:
    """The smallest valid tree that has ``section``."""
    tree: dict[str, Any] = {"model": {"path": "m.gguf"}}
    match section:
        case "server" | "scheduler" | "cache" | "responses":
            tree[section] = {}
        case "disk_cache":
            tree[section] = {"path": "cache", "max_bytes": 1}
        case "model.from_pretrained":
            tree["model"] = {"from_pretrained": dict(PRETRAINED)}
        case "model.from_package":
            tree["model"] = {"from_package": dict(PACKAGE)}
        case "model.loras[0]":
            tree["model"]["loras"] = [{"path": "lora.gguf"}]
        case "model.fim_tokens":
            tree["model"]["fim_tokens"] = {}
        case "model.mtmd":
            tree["model"]["mtmd"] = {"mmproj_path": "mmproj.gguf"}
        case "model.mtmd.embedding_cache":
            tree["model"]["mtmd"] = {"mmproj_path": "mmproj.gguf", "embedding_cache": {"path": "c", "max_bytes": 1}}
        case "model" | "":
            pass
        case _:
            raise AssertionError(section)
    return tree


def names_of(section: str) -> list[str]:
    return section.replace("[0]", ".0").split(".") if section else []


def at(tree: Any, section: str) -> Any:
    """The part of a JSON tree that ``section`` names."""
    for name in names_of(section):
        tree = tree[int(name)] if name.isdigit() else tree[name]
    return tree


def parsed_section(tree: Any, section: str) -> Any:
    value: Any = parse(tree)
    for name in names_of(section):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value


def holds(found: Any, value: Any) -> bool:
    """Whether parsed ``found`` says what the JSON ``value`` says; defaults may have been added."""
    found = msgspec.to_builtins(found)
    if isinstance(value, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], value[key]) for key in value)
    if isinstance(value, list):
        return isinstance(found, (list, tuple)) and len(found) == len(value) and all(map(holds, found, value))
    return bool(found == value)
