"""The fields of other servers' requests: who has them, and what becomes of them here.

What changes an answer is another name of a field here, is translated into one, or is refused with what to send. The
rest is known by name only, so that it is not taken for a mistyped field: it is read by nothing, and the client is told.
A field that an endpoint declares is not looked up here. Those of OpenAI's other endpoints, which change an answer, are
in ``foreign`` of each request's type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

_LIMITS = ("max_tokens", "max_output_tokens")


class Foreign(NamedTuple):
    """A field that ``who`` has. It is the ``same`` as the first of these that an endpoint has, or what ``translated``
    gives for its value: fields of this server, None where it cannot say. Where neither can be it is refused, with
    ``instead`` to send, unless its value is ``idle`` or says nothing; without ``instead`` it is read by nothing."""

    who: str
    same: tuple[str, ...] = ()
    translated: Callable[[Any], dict[str, Any] | None] | None = None
    instead: str = ""
    idle: tuple[object, ...] = ()


def _thinking(value: Any) -> dict[str, Any] | None:
    """Anthropic's and DeepSeek's object in a chat."""
    if not isinstance(value, dict) or value.get("type") not in ("enabled", "disabled", "adaptive"):
        return None
    budget = {"thinking_token_budget": value["budget_tokens"]} if "budget_tokens" in value else {}
    known = value.keys() <= {"type", "budget_tokens", "clear_thinking"}
    return {"enable_thinking": value["type"] != "disabled", **budget} if known else None


def _think(value: Any) -> dict[str, Any] | None:
    """Ollama's switch, or how much."""
    if isinstance(value, bool):
        return {"enable_thinking": value}
    return {"reasoning_effort": value} if isinstance(value, str) else None


def _format(value: Any) -> dict[str, Any] | None:
    """Ollama's: JSON, or a schema."""
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    return {"json_schema": value} if isinstance(value, dict) else None


def _do_sample(value: Any) -> dict[str, Any] | None:
    return {"temperature": 0} if value is False else None


def _separated(value: Any) -> dict[str, Any] | None:
    return {"reasoning_format": "none"} if value is False else None


def _refused(who: str, instead: str, *idle: object) -> Foreign:
    return Foreign(who, instead=instead, idle=idle)


_SAMPLERS = "a stage of `samplers`"
_ADAPTER = "the adapter's name as `model`, or `lora`"
_MEDIA = "pictures and sound as parts of `messages` to /v1/chat/completions"
_TEXT = "the text in `prompt`, or a chat to /v1/chat/completions"
_IDS = "token ids in `prompt` to /v1/completions"
_RENDERED = "`chat_template_kwargs`, or set `model.chat_template` in the server's config"
_NO_FORM = "`response_format` or `structured_outputs`"

CHANGING: dict[str, Foreign] = {
    # how long
    "max_new_tokens": Foreign("TGI, SGLang", same=_LIMITS),
    "num_predict": Foreign("Ollama", same=_LIMITS),
    "n_predict": Foreign("llama-server", same=_LIMITS),
    "maxOutputTokens": Foreign("Gemini", same=_LIMITS),
    "max_length": _refused("KoboldCpp", "`max_tokens`"),
    "min_new_tokens": Foreign("TGI, SGLang", same=("min_tokens",)),
    "min_length": Foreign("KoboldCpp", same=("min_tokens",)),
    "n_indent": _refused("llama-server", "the request to /infill", 0),
    "t_max_predict_ms": _refused("llama-server", "the request to /completion", -1, 0),
    "truncate": Foreign("TGI, TEI, NIM", same=("truncate_prompt_tokens",), idle=(False, "NONE")),
    "prompt_truncate_len": Foreign("Fireworks", same=("truncate_prompt_tokens",)),
    "max_prompt_tokens": Foreign("vLLM", same=("truncate_prompt_tokens",)),
    # where it ends
    "stop_sequences": Foreign("Anthropic, Cohere", same=("stop",)),
    "stop_sequence": Foreign("KoboldCpp", same=("stop",)),
    "stopSequences": Foreign("Gemini", same=("stop",)),
    "stop_regex": _refused("SGLang", "`stop`"),
    "no_stop_trim": Foreign("SGLang", same=("include_stop_str_in_output",)),
    "ban_eos_token": Foreign("text-generation-webui", same=("ignore_eos",)),
    # how tokens are chosen
    "temp": Foreign("KoboldCpp", same=("temperature",)),
    "typical": Foreign("KoboldCpp", same=("typical_p",)),
    "random_seed": Foreign("Mistral", same=("seed",)),
    "sampler_seed": Foreign("KoboldCpp", same=("seed",)),
    "rep_pen": Foreign("KoboldCpp", same=("repetition_penalty",)),
    "rep_pen_range": Foreign("KoboldCpp", same=("repeat_last_n",)),
    "repetition_penalty_range": Foreign("text-generation-webui", same=("repeat_last_n",)),
    "mirostat_mode": Foreign("text-generation-webui", same=("mirostat",)),
    "do_sample": Foreign("TGI", translated=_do_sample, instead="`temperature` 0", idle=(True,)),
    "min_keep": _refused("llama-server", _SAMPLERS, 0, 1),
    "adaptive_target": _refused("llama-server", _SAMPLERS, -1),
    "top_h": _refused("text-generation-webui", "`min_p`", 0),
    "top_a": _refused("OpenRouter, KoboldCpp", "`min_p`", 0),
    "tfs": _refused("KoboldCpp", "`min_p`", 1),
    "tfs_z": _refused("llama-server once", "`min_p`", 1),
    "penalize_nl": _refused("llama-server once", "`logit_bias`"),
    "penalize_newline": _refused("Ollama", "`logit_bias`"),
    "epsilon_cutoff": _refused("text-generation-webui", _SAMPLERS, 0),
    "eta_cutoff": _refused("text-generation-webui", _SAMPLERS, 0),
    "smoothing_factor": _refused("text-generation-webui", _SAMPLERS, 0),
    "penalty_alpha": _refused("text-generation-webui", _SAMPLERS, 0),
    "no_repeat_ngram_size": _refused("text-generation-webui", "`dry_multiplier`", 0),
    "encoder_repetition_penalty": _refused("text-generation-webui", "`repetition_penalty`", 1),
    "sampler_order": _refused("KoboldCpp", "`samplers`"),
    "sampler_priority": _refused("text-generation-webui", "`samplers`"),
    "temperature_last": _refused("text-generation-webui", "`samplers`"),
    "guidance_scale": _refused("text-generation-webui", "a `prompt` that says so", 1),
    "negative_prompt": _refused("text-generation-webui", "a `prompt` that says so"),
    "banned_strings": _refused("KoboldCpp", "`logit_bias`"),
    "banned_tokens": _refused("KoboldCpp", "`logit_bias`"),
    "custom_token_bans": _refused("text-generation-webui", "`logit_bias`"),
    "sampling_params": _refused("SGLang", "its fields beside the others"),
    "custom_logit_processor": _refused("SGLang", "`logit_bias` or a grammar"),
    "logit_processors": _refused("vLLM", "`logit_bias` or a grammar"),
    "num_beams": _refused("transformers", "`best_of` to /v1/completions", 1),
    "early_stopping": _refused("transformers", "`best_of` to /v1/completions"),
    "repetition_detection": _refused("vLLM", "`dry_multiplier`"),
    "watermark": _refused("TGI", "the request to a server that has it"),
    # what form it has
    "format": Foreign("Ollama", translated=_format, instead=_NO_FORM),
    "structural_tag": _refused("SGLang", _NO_FORM),
    "grammar_lazy": _refused("llama-server", "`tools`"),
    "grammar_triggers": _refused("llama-server", "`tools`"),
    "preserved_tokens": _refused("llama-server", "`skip_special_tokens`: false"),
    "return_full_text": Foreign("TGI", same=("echo",)),
    # thinking
    "thinking": Foreign(
        "Anthropic, DeepSeek", translated=_thinking, instead="`reasoning`, or `enable_thinking` to /v1/chat/completions"
    ),
    "think": Foreign("Ollama", translated=_think, instead="`enable_thinking` or `reasoning_effort`"),
    "thinking_budget": Foreign("Qwen, SiliconFlow", same=("thinking_token_budget",)),
    "separate_reasoning": Foreign("SGLang", translated=_separated, instead='`reasoning_format`: "none"', idle=(True,)),
    "stream_reasoning": _refused("SGLang", "`include_reasoning`: false", True),
    "reasoning_budget_message": _refused("llama-server", "a budget without a message"),
    "prompt_mode": _refused("Mistral", "`reasoning_effort`"),
    # what is read
    "options": _refused("Ollama", "its fields beside `model`"),
    "parameters": _refused("TGI", "its fields beside `model`"),
    "inputs": _refused("TGI", _TEXT),
    "input_ids": _refused("SGLang", _IDS),
    "prompt_embeds": _refused("vLLM", _IDS),
    "input_embeds": _refused("SGLang", _IDS),
    "message": _refused("Cohere", "`messages`"),
    "chat_history": _refused("Cohere", "`messages`"),
    "preamble": _refused("Cohere", "a system message in `messages`"),
    "system": _refused("Ollama, Anthropic", "a system message in `messages`"),
    "context": _refused("Ollama", "the conversation in `messages`"),
    "raw": _refused("Ollama", "the `prompt` to /v1/completions"),
    "template": _refused("Ollama", _RENDERED),
    "chat_template": _refused("vLLM", _RENDERED),
    "generation_prompt": _refused("llama-server", "`continue_final_message`"),
    "prefix": _refused("DeepSeek", "`continue_final_message`"),
    "safe_prompt": _refused("Mistral", "a system message in `messages`"),
    "image_data": _refused("llama-server", _MEDIA),
    "multimodal_data": _refused("llama-server", _MEDIA),
    "multi_modal_data": _refused("vLLM", _MEDIA),
    "images": _refused("Ollama", _MEDIA),
    "audio_data": _refused("SGLang", _MEDIA),
    "video_data": _refused("SGLang", _MEDIA),
    "search_parameters": _refused("xAI", "what was found in `messages`"),
    "plugins": _refused("OpenRouter", "what was found in `messages`"),
    "lora_path": _refused("SGLang", _ADAPTER),
    "lora_request": _refused("vLLM", _ADAPTER),
    "adapter_id": _refused("TGI", _ADAPTER),
    "system_prompt": _refused("llama-server once", "a system message in `messages`"),
    "task": _refused("Jina", "the task in `input`"),
    "input_type": _refused("Cohere, NIM", "the task in `input`"),
    "instruction": _refused("Qwen", "the instruction in `input`"),
    "prompt_name": _refused("TEI", "the prompt in `input`"),
    "normalized": Foreign("Jina", same=("normalize",)),
    "late_chunking": _refused("Jina", "each chunk in `input`"),
    "texts": Foreign("TEI", same=("documents",)),
    "return_text": Foreign("TEI", same=("return_documents",)),
    "top_k": Foreign("Voyage", same=("top_n",)),
    "data_1": Foreign("vLLM", same=("text_1",)),
    "data_2": Foreign("vLLM", same=("text_2",)),
    # what is told
    "return_logprob": _refused("SGLang", "`logprobs`"),
    "top_logprobs_num": _refused("SGLang", "`logprobs`", 0),
    "token_ids_logprob": _refused("SGLang", "`logprobs`"),
    "logprob_start_len": _refused("SGLang", "`echo` with `logprobs` to /v1/completions", -1),
    "top_n_tokens": _refused("TGI", "`logprobs`", 0),
    "logprob_token_ids": _refused("vLLM", "`logprobs`"),
    "response_fields": _refused("llama-server", "the request to /completion"),
    "prompt_logprobs": _refused("vLLM", "`prompt_logprobs` to /v1/chat/completions"),
    "return_hidden_states": _refused("SGLang", "the text to /v1/embeddings"),
}

# Of these no answer depends here: who asks, prices, where else it might run, how it is computed and told.
SILENT: dict[str, str] = {
    "OpenAI": "background background_options audio function_call functions image instructions max_tool_calls metadata "
    "modalities moderation parallel_tool_calls prediction prompt_cache_key prompt_cache_options prompt_cache_retention "
    "reasoning_effort safety_identifier service_tier store stream_options tool_choice tools verbosity user "
    "web_search_options dimensions encoding_format include truncation conversation partition_key betas "
    "max_tokens top_p",
    "Anthropic": "cache_control container context_management diagnostics fallbacks inference_geo mcp_servers "
    "output_config output_format speed thread user_profile_id compaction",
    "vLLM": "add_special_tokens bootstrap_host bootstrap_port bootstrap_room chat_template_content_format detokenize "
    "data_parallel_rank flat_logprobs guided_decoding_backend kv_transfer_params media_io_kwargs mm_processor_kwargs "
    "mm_data query_id request_id return_assistant_tokens_mask spaces_between_special_tokens stream_interval "
    "truncation_side vllm_xargs use_audio_in_video output_kind skip_reading_prefix_cache extra_args",
    "SGLang": "background_request bypass_cache custom_labels custom_params data_parallel_size dp_rank extra_key "
    "routed_dp_rank disagg_prefill_dp_rank return_bytes return_text_in_logprobs return_cached_tokens_details "
    "return_routed_experts session_params text_in_logprobs return_meta_info stop_token_strs",
    "llama-server": "adaptive_decay backend_sampling chat_format chat_parser id_slot n_cache_reuse n_discard "
    "n_keep reasoning_control reasoning_in_content return_progress slot_id sse_ping_interval "
    "t_max_prompt_ms verbose post_sampling_probs cache_prompt normalize is_3d_lora_weight truncation_direction",
    "Ollama": "keep_alive low_vram main_gpu num_batch num_ctx num_gpu num_keep num_thread numa suffix_prompt use_mlock "
    "use_mmap vocab_only f16_kv",
    "LM Studio": "draft_model integrations ttl",
    "OpenRouter": "debug models preset provider route session_id structured_output trace transforms usage",
    "LiteLLM": "aembedding allowed_openai_params api_base api_key api_version base_url cache caching "
    "custom_llm_provider drop_params extra_body extra_headers guardrails headers hf_model_name mock_response "
    "no-log num_retries organization proxy_server_request request_timeout tags timeout litellm_call_id "
    "litellm_metadata litellm_session_id litellm_trace_id max_retries model_info",
    "TGI": "best_of_sequences decoder_input_details details adapter tool_prompt",
    "Cohere, Jina": "top_n",
    "Together, Fireworks, Groq": "speculation compliance context_length_exceeded_behavior disable_tool_validation "
    "perf_metrics_in_response raw_output reasoning_history safety_model citation_options compound_custom "
    "exclude_domains include_domains repetition_model",
    "Mistral, DeepSeek, Qwen": "enable_search guardrail n_completions search_options stream_tool_calls tool_stream "
    "incremental_output result_format do_stream request_metadata",
    "KoboldCpp": "genkey max_context_length memory quiet render_special trim_stop use_default_badwordsids",
    "text-generation-webui": "add_bos_token auto_max_new_tokens character continue_ instruction_template mode "
    "prompt_lookup_num_tokens your_name",
}

WHOSE = {name: who for who, names in SILENT.items() for name in names.split()} | {
    name: one.who for name, one in CHANGING.items()
}
