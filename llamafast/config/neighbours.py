"""What other servers call the keys of cfg.json: whoever writes theirs is told ours."""

from __future__ import annotations

# By the name that somebody writes, in snake case: the key that is meant, or what to do in place of it.
_KEYS = {
    # llama-server's flags, llama-cpp-python's first server, koboldcpp, LM Studio
    "ctx_size": "model.n_ctx",
    "contextsize": "model.n_ctx",
    "context_size": "model.n_ctx",
    "n_parallel": "model.n_seq_max",
    "parallel": "model.n_seq_max",
    "np": "model.n_seq_max",
    "slots": "model.n_seq_max",
    "gpu_layers": "model.n_gpu_layers",
    "ngl": "model.n_gpu_layers",
    "gpulayers": "model.n_gpu_layers",
    "batch_size": "model.n_batch",
    "ubatch_size": "model.n_ubatch",
    "n_threads": "model.threads",
    "n_threads_batch": "model.threads_batch",
    "cache_type_k": "model.type_k",
    "cache_type_v": "model.type_v",
    "cpu_moe": "model.n_cpu_moe",
    "ncmoe": "model.n_cpu_moe",
    "override_tensor": "model.override_tensors",
    "tensor_buft_overrides": "model.override_tensors",
    "overridetensors": "model.override_tensors",
    "ot": "model.override_tensors",
    "device": "model.devices",
    "rpc": "model.rpc_servers",
    "model_alias": "model.alias",
    "model_path": "model.path",
    "hf_repo": "model.from_pretrained",
    "hf_repo_id": "model.from_pretrained.repo_id",
    "hf_model_repo_id": "model.from_pretrained.repo_id",
    "hf_file": "model.from_pretrained.filename",
    "hf_filename": "model.from_pretrained.filename",
    "mmproj": "model.mtmd.mmproj_path",
    "clip_model_path": "model.mtmd.mmproj_path",
    "chat_format": "model.chat_template",
    "chat_template_file": "model.chat_template",
    "lora": "model.loras",
    "lora_path": "model.loras",
    "lora_modules": "model.loras",
    "model_draft": "model.draft_model",
    "mlock": "model.use_mlock",
    "no_mmap": "model.use_mmap",
    "cache_ram": "cache.ram_bytes",
    "slot_save_path": "disk_cache.path",
    "n_predict": "model.max_output_tokens",
    # Ollama's
    "num_ctx": "model.n_ctx",
    "context_length": "model.n_ctx",
    "num_gpu": "model.n_gpu_layers",
    "num_thread": "model.threads",
    "num_batch": "model.n_batch",
    "num_parallel": "model.n_seq_max",
    "num_predict": "model.max_output_tokens",
    "max_loaded_models": "pool.max_bytes",
    "keep_alive": "model.ttl_seconds",
    "template": "model.chat_template",
    "adapter": "model.loras",
    # vLLM's and SGLang's
    "max_model_len": "model.max_seq_len",
    "max_num_seqs": "model.n_seq_max",
    "max_num_batched_tokens": "model.n_batch",
    "max_running_requests": "model.n_seq_max",
    "max_queued_requests": "server.max_queue",
    "served_model_name": "model.alias",
    "kv_cache_dtype": "model.type_k",
    "tool_call_parser": "model.dialect",
    "reasoning_parser": "model.dialect",
    "ssl_cert_file": "server.ssl_certfile",
    "ssl_key_file": "server.ssl_keyfile",
    "allowed_origins": "server.cors_origins",
    "cors_allow_origins": "server.cors_origins",
    "unix_socket": "server.uds",
    "address": "server.host",
    "bind": "server.host",
    "timeout": "server.request_seconds",
}
_WORDS = {
    "api_key": "keys are not in this file: name theirs in server.api_key_file, or set LLAMAFAST_API_KEY",
    "api_keys": "keys are not in this file: name theirs in server.api_key_file, or set LLAMAFAST_API_KEY",
    "tensor_parallel_size": "llama.cpp divides a model among all GPUs by itself; model.tensor_split says otherwise",
    "gpu_memory_utilization": "model.n_gpu_layers says how much of it GPUs get, model.n_ctx how large its cache is",
    "dtype": "a GGUF has its type in it",
    "quantization": "a GGUF has its type in it",
    "jinja": "chat templates are always rendered",
    "cont_batching": "batches are always continuous",
    "metrics": "/metrics is always there",
    "temperature": "is for requests to say, or for the GGUF to recommend (general.sampling.temp)",
    "seed": "is for requests to say",
}


def hint_for(key: str) -> str | None:
    """What to write in place of a key that is another server's, spelled with dashes or underscores; None: nobody's."""
    name = key.strip("-").replace("-", "_").lower()
    if (meant := _KEYS.get(name)) is not None:
        return f"did you mean {meant}?"
    return _WORDS.get(name)
