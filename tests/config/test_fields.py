"""cfg.json: every field's default and limits, rules between fields, and clear faults."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from config.fields import EVERY_FIELD, FIELDS, REQUIRED
from config.trees import PACKAGE, PRETRAINED, at, faults, holds, minimal, parse, parse_model, parsed_section
from llamafast import config as shapes


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


def test_integral_numbers_are_integers() -> None:
    """Where a key takes both, what was written stays: llama.cpp tells 1.0 from 1 in the metadata of a model."""
    model = parse_model(n_ctx=4096.0, type_k=8.0, kv_overrides={"a": 1.0, "b": 1})
    assert (model.n_ctx, type(model.n_ctx)) == (4096, int)
    assert (model.type_k, type(model.type_k)) == (8, int)
    assert [type(value) for value in (model.kv_overrides or {}).values()] == [float, int]
    tree = minimal("server")
    at(tree, "server")["port"] = 8000.5
    assert faults(tree) == ["server.port: expected integer, got number"]


def test_the_most_bytes_of_a_body() -> None:
    assert parse(minimal("server")).max_body_bytes == shapes.MAX_BODY_BYTES
    tree = minimal("server")
    at(tree, "server")["max_body_bytes"] = 1000
    assert parse(tree).max_body_bytes == 1000
    media = {"path": "x", "mtmd": {"mmproj_path": "y", "image_max_bytes": 2**28, "video_max_bytes": 2**30 + 1}}
    assert parse({"model": media}).max_body_bytes == -(-(2**30 + 1) * 4 // 3)
    media["mtmd"] = {"mmproj_path": "y", "image_max_bytes": 1, "audio_max_bytes": 1, "video_max_bytes": 1}
    assert parse({"model": media}).max_body_bytes == shapes.MAX_BODY_BYTES


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


def test_where_weights_lie() -> None:
    by_map = parse_model(override_tensors={"a": "CPU", "(?=b)": "CUDA0"})
    by_list = parse_model(override_tensors=["a=CPU", "(?=b)=CUDA0"])
    assert by_map.tensor_buft_overrides == by_list.tensor_buft_overrides == [("a", "CPU"), ("(?=b)", "CUDA0")]
    assert parse_model().tensor_buft_overrides == []
    none = [parse_model(devices=said).device_names for said in ("none", ["none"], [])]
    assert none == [(), (), ()]
    assert parse_model().device_names is None
    assert parse_model(devices=["CUDA1"]).device_names == ("CUDA1",)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"devices": ["none", "CUDA0"]}, 'devices: "none" stands alone'),
        ({"devices": ["CUDA0", "CUDA0"]}, "devices: CUDA0 is there twice"),
        ({"override_tensors": ["exps"]}, "override_tensors: exps is no pattern=type, such as ffn_.*_exps=CPU"),
        ({"rpc_servers": ["a:0"]}, "rpc_servers: a:0 has no port between 1 and 65535"),
        ({"rpc_servers": ["a:1"], "devices": "none"}, "rpc_servers: have nothing to compute where devices are none"),
        ({"type_v": "q8_0", "flash_attn": False}, "type_v: one that is quantised needs flash_attn"),
    ],
)
def test_what_of_it_does_not_fit_together(said: dict[str, Any], fault: str) -> None:
    assert faults({"model": {"path": "m", **said}}) == [f"model.{fault}"]


def test_types_of_the_cache_by_name_are_told() -> None:
    assert [shapes.cache_type_name(type) for type in (None, 8, "q4_0", 0)] == ["f16", "q8_0", "q4_0", "f32"]
    assert parse_model(type_v="q8_0", flash_attn=True).quantises_cache
    assert parse_model(type_k=8).quantises_cache
    assert not parse_model(type_k="bf16", type_v=0, flash_attn=False).quantises_cache
    assert faults({"model": {"path": "m", "type_k": "q9_0"}})[0].startswith("model.type_k: expected one of 0, 1")


def test_draft_source() -> None:
    assert parse_model().draft_source is None
    assert parse_model(draft_model_path="d.gguf").draft_source == "d.gguf"
    assert parse_model(draft_model_from_package=PACKAGE).draft_source == shapes.FromPackage(**PACKAGE)
    (fault,) = faults({"model": {"path": "m", "draft_model_path": "d", "draft_model_from_pretrained": PRETRAINED}})
    assert fault == "model: at most one of draft_model_path and draft_model_from_pretrained may be set"


def test_a_draft_model_has_a_file() -> None:
    for drafts in ("draft-simple", ["prompt-lookup-decoding", "draft-simple"]):
        (fault,) = faults({"model": {"path": "m", "draft_model": drafts}})
        assert fault == (
            "model.draft_model: draft-simple needs one of draft_model_path, draft_model_from_pretrained and "
            "draft_model_from_package: a small model of the same vocabulary"
        )
        one = parse_model(draft_model=drafts, draft_model_path="d.gguf")
        assert (one.has_draft_model, one.draft_file) == (True, "d.gguf")
        assert "draft-simple" in (one.drafts or ())
    off = parse_model(draft_model="draft-simple", draft_model_path="d.gguf", draft_model_num_pred_tokens=0)
    assert (off.has_draft_model, off.draft_file) == (False, None)
    assert parse_model(draft_model="draft-mtp", draft_model_path="d.gguf").draft_file == "d.gguf"
    assert parse_model(draft_model="prompt-lookup-decoding", draft_model_path="d.gguf").draft_file is None


def test_replies_are_read_in_one_way() -> None:
    tree = {"model": {"path": "m", "response_schema": {}, "response_template": {}}}
    assert faults(tree) == ["model: at most one of response_schema and response_template may be set"]


def test_a_step_is_bounded_by_time_or_by_rows() -> None:
    tree = {"model": {"path": "m"}, "scheduler": {"prefill_chunk": 8, "target_itl_ms": 50}}
    assert faults(tree) == ["scheduler: at most one of prefill_chunk and target_itl_ms may be set"]


def test_media_are_fetched_from_hosts_that_can_be_named() -> None:
    tree = {"model": {"path": "m", "mtmd": {"mmproj_path": "p", "allowed_media_domains": ["bücher.example", "ü" * 70]}}}
    (fault,) = faults(tree)
    assert fault == f"model.mtmd.allowed_media_domains: {'ü' * 70} is not the name of a host"


def test_tls_takes_a_certificate_and_its_key() -> None:
    pair = {"ssl_certfile": "c", "ssl_keyfile": "k"}

    def told(**server: Any) -> list[str]:
        return faults({"model": {"path": "m"}, "server": server})

    assert told(ssl_certfile="c") == ["server.ssl_certfile: needs ssl_keyfile"]
    assert told(ssl_keyfile="k") == ["server.ssl_keyfile: needs ssl_certfile"]
    assert told(ssl_minimum_version="TLSv1.2") == ["server.ssl_minimum_version: needs ssl_certfile"]
    for alone in ("ssl_ca_certs", "ssl_cert_reqs"):
        assert f"server.{alone}: needs ssl_certfile" in told(ssl_ca_certs="a", ssl_cert_reqs=2)
    assert told(**pair, ssl_cert_reqs=1) == ["server.ssl_cert_reqs: needs ssl_ca_certs"]
    assert told(**pair, ssl_ca_certs="a")[0].startswith("server.ssl_ca_certs: needs ssl_cert_reqs")
    for more in ({}, {"ssl_ca_certs": "a", "ssl_cert_reqs": 1}, {"ssl_minimum_version": "TLSv1.2"}):
        server = {**pair, **more}
        assert holds(parse({"model": {"path": "m"}, "server": server}).server, server)


def test_mtp_needs_room_in_a_batch() -> None:
    mtp = {"path": "m", "draft_model": "draft-mtp", "draft_model_num_pred_tokens": 8}
    assert faults({"model": {**mtp, "n_batch": 8}})[0].startswith("model.n_batch: ")
    assert parse({"model": {**mtp, "n_batch": 9}}).model.n_batch == 9
    assert parse_model(n_batch=1).n_batch == 1


def test_chat_template_pieces_are_joined_without_separator() -> None:
    assert parse_model().chat_template_text is None
    assert parse_model(chat_template="{{ a }}").chat_template_text == "{{ a }}"
    assert parse_model(chat_template=["{{ a", " }}", "\n"]).chat_template_text == "{{ a }}\n"
