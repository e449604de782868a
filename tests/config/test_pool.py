"""``models`` and ``pool``: which names clash, which keys belong together, and what each child is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.trees import faults, parse
from llamafast.config import Config, PoolConfig
from llamafast.config_file import parse_config
from llamafast.errors import ConfigError
from llamafast.pool.division import child_config, disk_folder, named, pool_of


def entry(**fields: Any) -> dict[str, Any]:
    return {"path": "m.gguf", **fields}


def pool(*models: dict[str, Any], **sections: Any) -> PoolConfig:
    config = parse({"models": list(models), **sections})
    assert isinstance(config, PoolConfig)
    return config


def test_defaults() -> None:
    config = pool(entry(alias="a"))
    assert (config.pool.max_bytes, config.pool.queue_seconds, config.pool.unload_seconds) == (None, 300.0, 30.0)
    assert (config.pool.load_timeout_seconds, config.pool.stall_seconds) == (600.0, 120.0)
    unbounded = pool(entry(alias="a"), pool={"load_timeout_seconds": None, "stall_seconds": None}).pool
    assert (unbounded.load_timeout_seconds, unbounded.stall_seconds) == (None, None)
    assert (config.models[0].load, config.models[0].ttl_seconds) == ("startup", None)


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"model": entry(), "models": [entry()]}, "models: at most one of model and models may be set"),
        ({"models": []}, "models: at least one is needed"),
        ({"models": entry()}, "models: "),
        ({"models": [{}]}, "models[0]: exactly one of path"),
        ({"models": [entry(alias="a*")]}, "models[0].alias: is the model's own name, not a pattern"),
        ({"models": [entry(alais="x")]}, "models[0].alais: unknown key; did you mean alias?"),
        ({"models": [entry(alias="a"), entry(alias="a")]}, "models[1]: a is a name of models[0] already"),
        (
            {"models": [entry(alias="a", aliases=["g*"]), entry(alias="b", aliases=["g*"])]},
            "models[1]: g* is a name of models[0] already",
        ),
        (
            {"models": [entry(alias="a"), entry(alias="b", loras=[{"path": "l", "name": "a"}])]},
            "models[1]: a is a name of models[0] already",
        ),
        ({"models": [entry(alias="a", aliases=["a"])]}, "models[0].aliases: a is there twice"),
        (
            {"models": [entry(alias="a", aliases=["l"], loras=[{"path": "l", "name": "l"}])]},
            "models[0].loras: l is the name of something else too",
        ),
        ({"models": [entry(draft_model="draft-mtp")]}, ""),
        ({"models": [entry()], "pool": {"max_bytes": 0}}, "pool.max_bytes: "),
        ({"models": [entry()], "pool": {"queue_seconds": 0}}, "pool.queue_seconds: "),
        ({"models": [entry()], "pool": {"unload_seconds": -1}}, "pool.unload_seconds: "),
        ({"models": [entry()], "pool": {"stall_seconds": 0}}, "pool.stall_seconds: "),
        ({"models": [entry()], "pool": {"load_timeout_seconds": 0}}, "pool.load_timeout_seconds: "),
        ({"models": [entry()], "pool": {"max_models": 4}}, "pool.max_models: unknown key"),
        ({"model": entry(), "pool": {}}, "pool: is for several models"),
        ({"model": entry(memory_bytes=1)}, "model.memory_bytes: is for several models"),
    ],
)
def test_faults(tree: Any, fault: str) -> None:
    if fault:
        assert faults(tree)[0].startswith(fault)
    else:
        parse(tree)


@pytest.mark.parametrize("fields", [{"ttl_seconds": 60}, {"load": "on_demand"}])
def test_one_model_that_comes_and_goes_is_a_pool_of_one(fields: dict[str, Any]) -> None:
    config = parse({"model": entry(alias="a", memory_bytes=5, **fields), "pool": {"max_bytes": 9}})
    assert config.model.comes_and_goes
    whole = pool_of(config)
    assert whole.models == (config.model,)
    assert whole.pool.max_bytes == 9
    assert not parse({"model": entry(aliases=["gpt-*"])}).model.comes_and_goes


def test_a_model_without_an_alias_is_called_as_its_file(tmp_path: Path) -> None:
    package = {"package": "no-such-package", "filename": "some/dir/m2.gguf"}
    config = named(pool(entry(path="dir/m1.gguf"), {"from_package": package}))
    assert [model.alias for model in config.models] == ["m1.gguf", "m2.gguf"]
    with pytest.raises(ConfigError, match=r"models\[1\]: m1\.gguf is a name of models\[0\] already"):
        named(pool(entry(path="m1.gguf"), entry(path="other/m1.gguf")))
    with pytest.raises(ConfigError, match=r"models\[0\]\.alias: is needed"):
        named(pool({"from_package": package | {"filename": "*.gguf"}}))


def test_what_a_child_is_given() -> None:
    config = pool(
        entry(alias="a", aliases=["x"], load="on_demand", ttl_seconds=5, memory_bytes=7, chat_template=["a", "b"]),
        entry(alias="b/c", kv_overrides={"k": 1}),
        server={"port": 1, "api_key_file": "keys", "cors_origins": ["*"], "max_queue": 3, "queue_seconds": 4},
        scheduler={"priorities": True},
        disk_cache={"path": "disk", "max_bytes": 101, "min_tokens": 5},
        responses={"max_count": 6},
        pool={"unload_seconds": 9},
    )
    first, second = (
        parse_config(child_config(config, model, Path("/s"), Path("/r.sqlite"), 1001)) for model in config.models
    )
    assert isinstance(first, Config)
    assert isinstance(second, Config)
    assert not first.model.comes_and_goes
    assert (first.model.aliases, first.model.memory_bytes, first.model.chat_template) == (("x",), None, ("a", "b"))
    assert second.model.kv_overrides == {"k": 1}
    # the parent alone has these
    assert (first.server.uds, first.server.api_key_file, first.server.cors_origins) == ("/s", None, ())
    # these are each model's
    assert (first.server.max_queue, first.server.queue_seconds, first.server.drain_seconds) == (3, 4, 9)
    assert first.scheduler.priorities
    # these are divided
    assert first.cache.ram_bytes == second.cache.ram_bytes == 500
    assert first.disk_cache is not None
    assert second.disk_cache is not None
    assert (first.disk_cache.max_bytes, first.disk_cache.min_tokens) == (50, 5)
    assert Path(first.disk_cache.path).parent == Path(second.disk_cache.path).parent == Path("disk")
    assert first.disk_cache.path != second.disk_cache.path
    # and this is shared
    assert (first.responses.path, first.responses.max_count) == ("/r.sqlite", 6)


@pytest.mark.parametrize("alias", ["..", "../x", "/etc/passwd", "a" * 300, ".", "ä/b", "org/model"])
def test_a_models_folder_is_in_the_pools(alias: str, tmp_path: Path) -> None:
    disk = pool(entry(alias=alias), disk_cache={"path": str(tmp_path), "max_bytes": 1}).disk_cache
    assert disk is not None
    folder = disk_folder(disk, pool(entry(alias=alias)).models[0])
    assert folder.parent == tmp_path
    folder.mkdir()
    assert folder.resolve().parent == tmp_path.resolve()
