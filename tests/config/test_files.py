"""cfg.json as a file: what is not JSON, configs as users have them, and nothing but ConfigError whatever the bytes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.configs import config_in

from config.fields import EVERY_FIELD
from config.trees import PRETRAINED, at, holds, minimal, parse, parse_model
from llamafast.config import FromPretrained
from llamafast.config_file import load_tree, parse_config, refuse_unsupported, warn_of_retired
from llamafast.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        (b"", "line 1 column 1: "),
        (b'{"model": {},\n  model}', "line 2 column 3: "),
        (b'{"model": 1', "line 1 column 12: "),
        (b"[]", "the file must hold one JSON object"),
        (b"null", "the file must hold one JSON object"),
        (b'{"a": 1,\n "a": 2}', "a: key given twice"),
        (b'{"a": {"b b": 1, "b b": 2}}', 'a["b b"]: key given twice'),
        (b'{"a": 1, "a": 2} x', "line 1 column 18: "),
        (b'{"a": 1e999}', "1e999: not a finite number"),
        (b'{"a": NaN}', "NaN: not a finite number"),
        (b'{"a": -Infinity}', "-Infinity: not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number is too long"),
        (b'{"a":' * 100_000, "the file is nested too deeply"),
        (b"\xff\xfe{}", "the file is not valid Unicode: "),
        (b'{"model": {"path": "\\ud800"}}', "the file is not valid Unicode: "),
        (b'{"\\udfff": 1}', "the file is not valid Unicode: "),
    ],
)
def test_what_is_not_json(raw: bytes, start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert str(caught.value).startswith(start)


def test_a_key_that_is_there_twice_is_told_by_its_whole_path(tmp_path: Path) -> None:
    told = {
        '{"model": {"n_ctx": 1, "n_ctx": 1}}': ["model.n_ctx"],
        '{"models": [{"path": "a"}, {"path": "a", "path": "b"}]}': ["models[1].path"],
        '{"model": {"loras": [[], {"a": 1, "a": 2, "b": {"c": 1, "c": 2}, "a": 3}]}}':
            ["model.loras[1].a", "model.loras[1].b.c"],
        '{"server": {"port": 1, "port": 2}, "server": {}}': ["server"],
        '[{"a": 1, "a": 2}]': ["[0].a"],
    }  # fmt: skip
    file = tmp_path / "cfg.json"
    for text, paths in told.items():
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_tree(file)
        assert str(caught.value).split("\n") == [f"{file}: {path}: key given twice in one object" for path in paths]


def test_byte_order_mark_is_allowed() -> None:
    assert parse_config(b'\xef\xbb\xbf{"model": {"path": "m"}}').model.path == "m"


def test_a_file_is_read_and_an_unreadable_one_named(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_text('{"model": {"path": "é.gguf"}}', encoding="utf-8")
    assert config_in(file).model.source == "é.gguf"
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError) as caught:
            config_in(missing)
        assert str(caught.value).startswith(f"{missing}: ")


SEED_LIKE: dict[str, dict[str, Any]] = {
    "small chat with projector": {
        "server": {"host": "0.0.0.0", "port": 8000},
        "model": {
            "alias": "small-vl",
            "from_pretrained": PRETRAINED,
            "n_ctx": 32768,
            "n_seq_max": 64,
            "n_batch": 128,
            "n_ubatch": 128,
            "threads": 4,
            "threads_batch": 8,
            "kv_unified": True,
            "max_output_tokens": 4096,
            "store_logits": False,
            "use_mmap": True,
            "use_mlock": True,
            "chat_template": ["{% for m in messages %}", "{{ m.content }}", "{% endfor %}"],
            "response_schema": {"type": "object", "properties": {"role": {"const": "assistant"}}},
            "mtmd": {"mmproj_from_pretrained": PRETRAINED, "embedding_cache": {"path": ".cache/e", "max_bytes": 1024}},
        },
        "disk_cache": {"path": ".cache/s", "max_bytes": 1024, "min_tokens": 64},
    },
    "large on GPU, split, drafting": {
        "model": {
            "alias": "large",
            "from_pretrained": {**PRETRAINED, "additional_files": ["m-00002-of-00002.gguf"], "cache_dir": None},
            "n_gpu_layers": -1,
            "split_mode": 1,
            "main_gpu": 0,
            "tensor_split": [1.0],
            "flash_attn": True,
            "offload_kqv": True,
            "op_offload": True,
            "n_ctx": 32768,
            "n_seq_max": 8,
            "n_batch": 512,
            "draft_model": "draft-mtp",
            "draft_model_num_pred_tokens": 2,
            "loras": [{"path": "lora.gguf", "scale": 0.5}],
        }
    },
    "bge-small-en-v1.5": {
        "server": {"host": "0.0.0.0", "port": 8000},
        "model": {
            "alias": "bge-small-en-v1.5",
            "from_pretrained": {
                "repo_id": "CompendiumLabs/bge-small-en-v1.5-gguf",
                "filename": "bge-small-en-v1.5-q4_k_m.gguf",
            },
            "n_ctx": 512,
            "n_seq_max": 16,
            "n_batch": 512,
            "n_ubatch": 512,
            "threads": 4,
            "threads_batch": 8,
            "kv_unified": True,
            "use_mmap": True,
            "store_logits": False,
        },
        "disk_cache": None,
    },
    "gpt-oss-120b": {
        "server": {"host": "0.0.0.0", "port": 8000},
        "model": {
            "alias": "gpt-oss-120b",
            "from_pretrained": {
                "repo_id": "ggml-org/gpt-oss-120b-GGUF",
                "filename": "gpt-oss-120b-mxfp4-00001-of-00003.gguf",
                "additional_files": [
                    "gpt-oss-120b-mxfp4-00002-of-00003.gguf",
                    "gpt-oss-120b-mxfp4-00003-of-00003.gguf",
                ],
            },
            "n_gpu_layers": -1,
            "flash_attn": True,
            "n_ctx": 32768,
            "n_seq_max": 4,
            "n_batch": 512,
            "n_ubatch": 512,
            "threads": 8,
            "threads_batch": 8,
            "max_output_tokens": 4096,
            "kv_unified": True,
            "use_mmap": True,
            "use_mlock": False,
            "store_logits": False,
            "chat_template": [
                "{% for m in messages %}",
                "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>",
                "{% endfor %}",
            ],
            "response_schema": {
                "type": "object",
                "properties": {
                    "role": {"const": "assistant"},
                    "reasoning_content": {
                        "type": "string",
                        "x-regex": r"<\|channel\|>analysis<\|message\|>(.*?)(?=<\|end\|>|<\|start\|>|$)",
                    },
                    "content": {
                        "type": "string",
                        "x-regex": r"^.*<\|channel\|>final<\|message\|>(.*?)(?=<\|return\|>|<\|end\|>|$)",
                    },
                    "tool_calls": {
                        "type": "array",
                        "x-regex-iterator": r"(<\|channel\|>commentary to=functions\..*?<\|call\|>)",
                        "items": {
                            "type": "object",
                            "properties": {
                                "type": {"const": "function"},
                                "function": {
                                    "type": "object",
                                    "properties": {
                                        "name": {"type": "string", "x-regex": r"to=functions\.(\w+)"},
                                        "arguments": {
                                            "type": "object",
                                            "x-regex": r"<\|message\|>(.*)<\|call\|>",
                                            "x-parser": "json",
                                        },
                                    },
                                    "required": ["name", "arguments"],
                                },
                            },
                            "required": ["type", "function"],
                        },
                    },
                },
                "required": ["role"],
            },
        },
    },
}


SHIPPED = {"bge-small-en-v1.5", "gpt-oss-120b"}
SERVED = SHIPPED | {"small chat with projector", "large on GPU, split, drafting"}


@pytest.mark.parametrize("name", SEED_LIKE)
def test_configs_of_the_seed_shape_load_unchanged(name: str) -> None:
    tree = SEED_LIKE[name]
    assert holds(parse(tree), tree)
    with nullcontext() if name in SERVED else pytest.raises(ConfigError, match="not supported yet"):
        refuse_unsupported(parse(tree))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.vocab_only", True),
    ],
)
def test_refuses_what_does_not_exist_yet(path: str, value: Any) -> None:
    tree = minimal("model")
    section, _, key = path.rpartition(".")
    at(tree, section)[key] = value
    config = parse(tree)
    with pytest.raises(ConfigError) as caught:
        refuse_unsupported(config)
    assert str(caught.value) == f"{path}: not supported yet"


@pytest.mark.parametrize(
    "fields", [{}, {"loras": [{"path": "a"}]}, {"vocab_only": False, "embedding": False, "store_logits": False}]
)
def test_accepts_the_unsupported_switched_off(fields: dict[str, Any]) -> None:
    refuse_unsupported(parse({"model": {"path": "m", **fields}, "disk_cache": None}))


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.json")), ids=lambda file: file.name)
def test_shipped_configs_load(file: Path) -> None:
    config_in(file)


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        parse_model().n_ctx = 1  # type: ignore[misc]


KEYS = st.sampled_from(sorted({field for _, field in EVERY_FIELD})) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VALUES | st.fixed_dictionaries({"model": st.dictionaries(KEYS, VALUES, max_size=6)}))
def test_any_json_loads_or_is_a_config_error(tree: Any) -> None:
    try:
        config = parse(tree)
    except ConfigError:
        return
    assert [model.source for model in getattr(config, "models", None) or (config.model,)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_config_error(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(raw)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_config_serves_the_model_of_the_seeds_file_of_its_name(name: str) -> None:
    ours, seeds = config_in(ROOT / "configs" / f"{name}.json").model, parse(SEED_LIKE[name]).model
    assert isinstance(seeds.from_pretrained, FromPretrained)
    assert ours.from_pretrained == replace(seeds.from_pretrained, additional_files=None)
    for key in ("alias", "n_ctx", "n_seq_max", "n_batch", "n_gpu_layers", "flash_attn", "max_output_tokens"):
        assert getattr(ours, key) == getattr(seeds, key)


@pytest.mark.parametrize("wanted", [None, True, False])
def test_a_retired_key_is_taken_and_told(wanted: bool | None, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_retired(parse({"model": {"path": "m"}, "scheduler": {"disaggregate_prefill": wanted}}))
    warned = ["config   scheduler.disaggregate_prefill does nothing any more; the next version refuses it"]
    assert caplog.messages == ([] if wanted is None else warned)


def test_a_file_that_nobody_drafts_by_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for drafts in ("prompt-lookup-decoding", "draft-mtp", "draft-simple"):
        warn_of_retired(parse({"model": {"path": "m", "draft_model": drafts, "draft_model_path": "d"}}))
    assert caplog.messages == [
        "config   a file for drafts does nothing without model.draft_model draft-mtp or draft-simple"
    ]
