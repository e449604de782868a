"""What somebody is told who writes another server's words, or writes ours in the wrong place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.configs import config_in

from config.trees import faults, parse, parse_model
from llamafast.config import Config
from llamafast.config.neighbours import _KEYS, _WORDS, hint_for
from llamafast.config_file import _KEYS as OURS
from llamafast.config_file import load_tree
from llamafast.errors import ConfigError


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"model": {"path": "m", "ctx_size": 1}}, "model.ctx_size: unknown key; did you mean model.n_ctx?"),
        ({"model": {"path": "m", "parallel": 1}}, "model.parallel: unknown key; did you mean model.n_seq_max?"),
        ({"model": {"path": "m", "context_length": 1}}, "model.context_length: unknown key; did you mean model.n_ctx?"),
        ({"model": {"path": "m"}, "n_ctx": 1}, "n_ctx: unknown key; did you mean model.n_ctx?"),
        ({"model": {"path": "m", "port": 1}}, "model.port: unknown key; did you mean server.port?"),
        ({"model": {"path": "m"}, "--ctx-size": 1}, 'did you mean model.n_ctx?'),
        ({"model": {"path": "m"}, "server": {"api_key": "s"}}, "server.api_key_file, or set LLAMAFAST_API_KEY"),
    ],
)  # fmt: skip
def test_an_unknown_key_says_which_one_is_meant(tree: dict[str, Any], fault: str) -> None:
    (found,) = faults(tree)
    assert found.endswith(fault) or found == fault


def test_what_is_meant_is_there() -> None:
    assert set(_KEYS.values()) <= {*OURS, "model.from_pretrained.repo_id", "model.from_pretrained.filename"}
    # a name of our own needs no hint
    ours = {key.rpartition(".")[2] for key in OURS}
    assert not ours & (_KEYS.keys() | _WORDS.keys())
    assert hint_for("--max-model-len") == "did you mean model.max_seq_len?"


def test_types_of_the_cache_have_names() -> None:
    params = parse_model(type_k="q8_0", type_v=1).llama_context_params
    assert (params["type_k"], params["type_v"]) == (8, 1)


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = parse({"model": {"path": "~/m.gguf", "alias": "~"}, "server": {"api_key_file": "~/keys", "host": "~"}})
    assert isinstance(config, Config)
    assert (config.model.path, config.server.api_key_file) == ("/home/somebody/m.gguf", "/home/somebody/keys")
    assert (config.model.alias, config.server.host) == ("~", "~")


def test_faults_name_the_file_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "cfg.json"
    for text, told in (
        ('{"model": {"path": "m", "a": 1, "b": 1}}', ["model.a: unknown key", "model.b: unknown key"]),
        ("[]", ["the file must hold one JSON object"]),
        ("{", ["line 1 column 2: Expecting property name enclosed in double quotes"]),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            config_in("cfg.json")
        assert str(caught.value).split("\n") == [f"{file}: {fault}" for fault in told]
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none.json: No such file or directory$"):
        load_tree("none.json")
