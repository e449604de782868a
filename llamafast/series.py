"""The table of Prometheus series that the engine has values for.

Those that llama-cpp-python's example server has keep its names (prefixes ``llamacpp:`` and ``batch_server:``); new ones
start with ``llamafast:``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

# Upper bounds of buckets, how many values fell into each (one more: beyond the last bound), and their sum.
Histogram = tuple[Sequence[float], Sequence[int], float]


class Series(NamedTuple):
    """One engine series: the key the engine counts under, its name on the wire, type and help, and a label."""

    key: str
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    label: tuple[str, str] | None = None


FINISHED = "Sequences that ended, by reason"
MEDIA_HITS = "Media that were not encoded again, by where their rows were"
DROPPED = "States that were not written, by reason"
DELETED = "Files deleted, whole namespaces where these are foreign, by reason"
READ = "Files read, by result"
WAITING = "Sequences waiting, by what for"
ASLEEP = "1 for the state the engine is in: it is always awake"
SOURCE = "Prompt tokens, by where they came from"
EVICTED = "States dropped from RAM, by reason"

ENGINE_SERIES = (
    Series("prompt_tokens", "llamacpp:prompt_tokens_total", "counter", "Prompt tokens decoded"),
    Series("prompt_seconds", "llamacpp:prompt_seconds_total", "counter", "Decode time spent on prompt tokens"),
    Series("generated_tokens", "llamacpp:tokens_predicted_total", "counter", "Tokens generated"),
    Series("generated_seconds", "llamacpp:tokens_predicted_seconds_total", "counter", "Decode time of generation"),
    Series("steps", "llamacpp:n_decode_total", "counter", "Calls of llama_decode"),
    Series("rows_max", "llamacpp:n_tokens_max", "gauge", "Most rows a step has had"),
    Series("busy_per_step", "llamacpp:n_busy_slots_per_decode", "gauge", "Mean number of sequences in a step"),
    Series("prompt_rate", "llamacpp:prompt_tokens_seconds", "gauge", "Prompt tokens per second of prompt time"),
    Series("generated_rate", "llamacpp:predicted_tokens_seconds", "gauge", "Tokens per second of generation time"),
    Series("running", "llamacpp:requests_processing", "gauge", "Sequences running"),
    Series("waiting", "llamacpp:requests_deferred", "gauge", "Sequences waiting"),
    Series("steps", "batch_server:scheduler_step_calls_total", "counter", "Steps"),
    Series("step_seconds", "batch_server:scheduler_step_seconds_total", "counter", "Wall time in steps"),
    Series("steps", "batch_server:process_batch_calls_total", "counter", "Steps whose output was processed"),
    Series("sample_seconds", "batch_server:process_batch_seconds_total", "counter", "Time after llama_decode"),
    Series("generated_tokens", "batch_server:sample_calls_total", "counter", "Tokens sampled"),
    Series("sample_seconds", "batch_server:sample_seconds_total", "counter", "Sampling, detokenising, stop matching"),
    Series("submitted", "batch_server:requests_submitted_total", "counter", "Sequences submitted"),
    Series("admitted", "batch_server:requests_admitted_total", "counter", "Sequences admitted, also after preemption"),
    Series("completed", "batch_server:requests_completed_total", "counter", "Sequences that finished"),
    Series("cancelled", "batch_server:requests_cancelled_total", "counter", "Sequences cancelled"),
    Series("failed", "batch_server:requests_failed_total", "counter", "Sequences that failed"),
    Series("unfinished", "batch_server:active_completions", "gauge", "Sequences running or waiting"),
    Series("running", "batch_server:claimed_sequences", "gauge", "Sequence ids in use"),
    Series("", "batch_server:free_sequences", "gauge", "Ids with idle prefixes: always 0, these lie in RAM"),
    Series("free_sequences", "batch_server:unused_sequences", "gauge", "Sequence ids free"),
    Series("cache_checkpoints", "batch_server:checkpoint_entries", "gauge", "States in RAM that cannot be cut"),
    Series("cache_checkpoint_hits", "batch_server:checkpoint_hits_total", "counter", "Prompts continued from one"),
    Series("cache_checkpoint_saves", "batch_server:checkpoint_saves_total", "counter", "Checkpoints saved"),
    Series("evictions_budget", "batch_server:checkpoint_evictions_total", "counter", "States evicted from RAM"),
    Series("prefixes", "batch_server:radix_trie_sequences", "gauge", "Prefixes that can be reused, running or in RAM"),
    Series("used_cells", "batch_server:radix_trie_tokens", "gauge", "KV cells in use"),
    Series("preempted", "llamafast:preemptions_total", "counter", "Sequences sent back to the queue for room"),
    Series("finished_stop", "llamafast:sequences_finished_total", "counter", FINISHED, ("reason", "stop")),
    Series("finished_length", "llamafast:sequences_finished_total", "counter", FINISHED, ("reason", "length")),
    Series("finished_refused", "llamafast:sequences_finished_total", "counter", FINISHED, ("reason", "refused")),
    Series("cancelled", "llamafast:sequences_finished_total", "counter", FINISHED, ("reason", "cancelled")),
    Series("failed", "llamafast:sequences_finished_total", "counter", FINISHED, ("reason", "failed")),
    Series("rows", "llamafast:rows_total", "counter", "Rows of all steps"),
    Series("decode_seconds", "llamafast:decode_seconds_total", "counter", "Wall time in llama_decode"),
    Series("prefix_queries", "llamafast:prefix_cache_queries_total", "counter", "Prompt tokens looked up for reuse"),
    Series("prefix_hits", "llamafast:prefix_cache_hits_total", "counter", "Prompt tokens reused, not computed"),
    Series("prefix_hits_running", "llamafast:prefix_cache_hits_running_total", "counter", "Of them, of running ones"),
    Series("prefix_hits_ram", "llamafast:prefix_cache_hits_ram_total", "counter", "Of them, restored from RAM"),
    Series("cache_states", "llamafast:prefix_cache_states", "gauge", "Parts of prefixes and checkpoints in RAM"),
    Series("cache_checkpoints", "llamafast:prefix_cache_checkpoints", "gauge", "Of them, states that cannot be cut"),
    Series("cache_bytes", "llamafast:prefix_cache_bytes", "gauge", "Bytes of them"),
    Series("cache_max_bytes", "llamafast:prefix_cache_max_bytes", "gauge", "What these may come to"),
    Series("cache_restores", "llamafast:prefix_cache_restores_total", "counter", "Prefixes taken from RAM"),
    Series("evictions_budget", "llamafast:prefix_cache_evictions_total", "counter", EVICTED, ("reason", "budget")),
    Series("evictions_replaced", "llamafast:prefix_cache_evictions_total", "counter", EVICTED, ("reason", "replaced")),
    Series("forks", "llamafast:prefix_cache_forks_total", "counter", "Prefixes lent by a running sequence"),
    Series("used_cells", "llamafast:kv_cells_used", "gauge", "KV cells in use; a shared one counts for each owner"),
    Series("free_cells", "llamafast:kv_cells_free", "gauge", "KV cells not in use"),
    Series("reserved_cells", "llamafast:kv_cells_reserved", "gauge", "KV cells that running sequences may need"),
    Series("total_cells", "llamafast:kv_cells", "gauge", "KV cells"),
    Series("kv_usage", "llamafast:kv_usage_ratio", "gauge", "KV cells in use / KV cells, at most 1"),
    Series("queue_seconds", "llamafast:queue_seconds", "histogram", "From submitted to the first work on it"),
    Series(
        "first_token_seconds", "llamafast:time_to_first_token_seconds", "histogram", "From submitted to first token"
    ),
    Series("inter_token_seconds", "llamafast:inter_token_seconds", "histogram", "From each token to the next"),
    Series("prefill_seconds", "llamafast:prefill_seconds", "histogram", "From the first work to the first token"),
    Series("generation_seconds", "llamafast:generation_seconds", "histogram", "From first token to the end"),
    Series("inference_seconds", "llamafast:inference_seconds", "histogram", "From the first work to the end"),
    Series("end_to_end_seconds", "llamafast:end_to_end_seconds", "histogram", "From submitted to the end"),
    Series("step_seconds", "llamafast:step_seconds", "histogram", "Wall time of a step"),
    Series("step_rows", "llamafast:step_rows", "histogram", "Rows of a step"),
    Series("request_prompt_tokens", "llamafast:request_prompt_tokens", "histogram", "Prompt tokens, cached ones too"),
    Series(
        "request_generated_tokens", "llamafast:request_generated_tokens", "histogram", "Tokens of finished sequences"
    ),
    Series("request_max_tokens", "llamafast:request_max_tokens", "histogram", "Tokens they might have had"),
    Series("request_choices", "llamafast:request_choices", "histogram", "Choices asked for with a prompt, by request"),
    Series("request_token_seconds", "llamafast:request_token_seconds", "histogram", "A request's mean time per token"),
    Series("request_computed_tokens", "llamafast:request_computed_tokens", "histogram", "Prompt tokens not cached"),
)
# Only of models that embed.
EMBEDDING_SERIES = (
    Series("embedding_inputs", "llamafast:embedding_inputs_total", "counter", "Inputs embedded or ranked"),
    Series("embedding_tokens", "llamafast:embedding_tokens_total", "counter", "Tokens of them"),
    Series("embedding_steps", "llamafast:embedding_steps_total", "counter", "Batches of them"),
    Series("embedding_seconds", "llamafast:embedding_seconds_total", "counter", "Wall time in these batches"),
)

# What that server counts of its disk cache: of the disk where there is one, else of the cache in RAM.
RAM_SEQUENCE_CACHE = (
    Series("cache_restores", "batch_server:sequence_cache_hits_total", "counter", "Prefixes taken from RAM"),
    Series("cache_saves", "batch_server:sequence_cache_save_requests_total", "counter", "States saved to RAM"),
    Series("prefix_hits_ram", "batch_server:sequence_cache_tokens_loaded_total", "counter", "Tokens restored from RAM"),
    Series("restore_failures", "batch_server:sequence_cache_load_failures_total", "counter", "States not taken back"),
    Series("lookup_failures", "batch_server:sequence_cache_lookup_failures_total", "counter", "Look-ups that failed"),
    Series("save_failures", "batch_server:sequence_cache_save_failures_total", "counter", "States that were not saved"),
)

# Only with a disk_cache.
DISK_SERIES = (
    Series("disk_hits", "batch_server:sequence_cache_hits_total", "counter", "Prefixes taken from the disk"),
    Series("disk_save_requests", "batch_server:sequence_cache_save_requests_total", "counter", "States to be written"),
    Series("disk_tokens_loaded", "batch_server:sequence_cache_tokens_loaded_total", "counter", "Tokens read from disk"),
    Series("disk_load_failures", "batch_server:sequence_cache_load_failures_total", "counter", "States not to be had"),
    Series("lookup_failures", "batch_server:sequence_cache_lookup_failures_total", "counter", "Look-ups that failed"),
    Series("disk_save_failures", "batch_server:sequence_cache_save_failures_total", "counter", "States not written"),
    Series("prefix_hits_disk", "llamafast:prefix_cache_hits_disk_total", "counter", "Prompt tokens restored from disk"),
    Series("disk_bytes", "llamafast:disk_cache_bytes", "gauge", "Bytes of all namespaces"),
    Series("disk_max_bytes", "llamafast:disk_cache_max_bytes", "gauge", "What these may come to"),
    Series("disk_entries", "llamafast:disk_cache_entries", "gauge", "Files of this model"),
    Series("disk_writable", "llamafast:disk_cache_writable", "gauge", "1; 0: another process writes, this one reads"),
    Series("disk_write_paused", "llamafast:disk_cache_write_paused", "gauge", "1 for a while after a failed write"),
    Series("disk_queue_bytes", "llamafast:disk_cache_queue_bytes", "gauge", "Bytes on their way to the disk"),
    Series("disk_oldest_order", "llamafast:disk_cache_oldest_order_seconds", "gauge", "Age of what waits longest"),
    Series("disk_read_bytes", "llamafast:disk_cache_read_bytes_total", "counter", "Bytes of states read"),
    Series("disk_written_bytes", "llamafast:disk_cache_written_bytes_total", "counter", "Bytes of files written"),
    Series("disk_read_seconds", "llamafast:disk_cache_read_seconds", "histogram", "Reading a file"),
    Series("disk_write_seconds", "llamafast:disk_cache_write_seconds", "histogram", "Writing a file"),
    Series("disk_dropped_queue", "llamafast:disk_cache_dropped_total", "counter", DROPPED, ("reason", "queue")),
    Series("disk_dropped_budget", "llamafast:disk_cache_dropped_total", "counter", DROPPED, ("reason", "budget")),
    Series("disk_dropped_worth", "llamafast:disk_cache_dropped_total", "counter", DROPPED, ("reason", "worth")),
    Series("disk_slow", "llamafast:disk_cache_dropped_total", "counter", DROPPED, ("reason", "slow")),
    Series("disk_evictions", "llamafast:disk_cache_evictions_total", "counter", DELETED, ("reason", "budget")),
    Series("disk_foreign", "llamafast:disk_cache_evictions_total", "counter", DELETED, ("reason", "foreign")),
    Series("disk_corrupt", "llamafast:disk_cache_evictions_total", "counter", DELETED, ("reason", "corrupt")),
    Series("disk_orphans", "llamafast:disk_cache_evictions_total", "counter", DELETED, ("reason", "orphan")),
    Series("disk_loads", "llamafast:disk_cache_reads_total", "counter", READ, ("result", "hit")),
    Series("disk_late", "llamafast:disk_cache_reads_total", "counter", READ, ("result", "late")),
    Series("disk_wasted", "llamafast:disk_cache_reads_total", "counter", READ, ("result", "wasted")),
    Series("disk_load_failures", "llamafast:disk_cache_reads_total", "counter", READ, ("result", "failed")),
)

# Only of models that take media.
MEDIA_SERIES = (
    Series("media_encodes", "llamafast:media_encodes_total", "counter", "Pictures, sounds and videos encoded"),
    Series("media_encode_seconds", "llamafast:media_encode_seconds_total", "counter", "CPU time of that"),
    Series("media_rows", "llamafast:media_rows_total", "counter", "Rows of them in prompts that were computed"),
    Series("media_hits_ram", "llamafast:media_cache_hits_total", "counter", MEDIA_HITS, ("tier", "ram")),
    Series("media_joined", "llamafast:media_cache_hits_total", "counter", MEDIA_HITS, ("tier", "running")),
    Series("media_hits_disk", "llamafast:media_cache_hits_total", "counter", MEDIA_HITS, ("tier", "disk")),
    Series("media_cache_bytes", "llamafast:media_cache_bytes", "gauge", "Bytes of their rows in RAM"),
    Series("media_disk_bytes", "llamafast:media_disk_bytes", "gauge", "Bytes of their rows on disk"),
    Series("media_disk_writes", "llamafast:media_disk_writes_total", "counter", "Files of rows written"),
    Series("media_disk_failures", "llamafast:media_disk_failures_total", "counter", "Reads and writes that failed"),
    Series("media_failures", "llamafast:media_failures_total", "counter", "Media that could not be read or encoded"),
    Series("media_restarts", "llamafast:media_restarts_total", "counter", "Deaths of the process that encodes"),
)

# What a router made for vLLM may take for the unit of prefix reuse, in tokens. The real unit would have it hash every
# token.
BLOCK = 16

# Of a server that drafts nothing they are 0, so that dashboards find them.
DRAFT_SERIES = (
    Series("draft_seconds", "batch_server:draft_seconds_total", "counter", "Time spent on drafting, all in all"),
    Series("draft_process_seconds", "batch_server:draft_process_seconds_total", "counter", "Learning from what came"),
    Series("draft_generate_seconds", "batch_server:draft_generate_seconds_total", "counter", "Looking for drafts"),
    Series("", "batch_server:draft_sampled_batch_seconds_total", "counter", "Always 0: there is one way to draft"),
    Series("draft_observed", "batch_server:draft_process_calls_total", "counter", "Sequences learned from"),
    Series("draft_calls", "batch_server:draft_generate_calls_total", "counter", "Steps for which something was found"),
    Series("", "batch_server:draft_sampled_batch_calls_total", "counter", "Always 0: there is one way to draft"),
    Series("draft_proposals", "batch_server:draft_proposals_total", "counter", "Drafts found, decoded or not"),
    Series("draft_tokens_proposed", "batch_server:draft_tokens_proposed_total", "counter", "Tokens of them"),
    Series("draft_tokens_accepted", "batch_server:draft_tokens_accepted_total", "counter", "Drafted tokens that came"),
    Series("draft_wasted", "batch_server:draft_tokens_rejected_total", "counter", "Decoded ones that did not"),
    Series("draft_batches_verified", "batch_server:draft_batches_verified_total", "counter", "Drafts decoded"),
    Series("draft_tokens_verified", "batch_server:draft_target_tokens_verified_total", "counter", "Rows of them"),
    Series("draft_wasted", "batch_server:draft_target_tokens_wasted_total", "counter", "Rows that were taken back"),
    Series("", "batch_server:draft_tokens_reused_as_pending_total", "counter", "Always 0: no draft outlives its step"),
    Series("draft_rate", "batch_server:draft_acceptance_rate", "gauge", "Drafted tokens that came / decoded"),
    Series("draft_mean", "batch_server:draft_average_proposed_tokens", "gauge", "Tokens of a draft, decoded or not"),
    Series("draft_accepted_mean", "batch_server:draft_average_verified_acceptance_length", "gauge", "Of a decoded one"),
    *(
        Series(f"draft_{source}_{key}", f"llamafast:draft_{name}_total", "counter", text, ("source", source))
        for key, name, text in (
            ("verified", "rows", "Rows of drafted tokens, by who drafted"),
            ("accepted", "accepted", "Drafted tokens that came, by who drafted"),
        )
        for source in ("own", "prediction", "answers", "head", "model")
    ),
    *(
        Series(f"{source}_{key}", f"llamafast:draft_model_{key}_total", "counter", text, ("source", source))
        for key, text in (
            ("calls", "Calls of a model that drafts, by which it is"),
            ("rows", "Rows of these calls, prompts included"),
            ("failures", "Such calls that failed"),
        )
        for source in ("head", "model")
    ),
    Series("draft_refused", "llamafast:draft_refused_total", "counter", "Drafts of those whose drafts have lost time"),
    Series("draft_dropped", "llamafast:draft_dropped_total", "counter", "Steps without memory for their drafts"),
)

# The names of another server for the same things, for dashboards and autoscalers that know only those.
ALIASES = {
    "vllm": (
        Series("running", "vllm:num_requests_running", "gauge", "Sequences running"),
        Series("waiting", "vllm:num_requests_waiting", "gauge", "Sequences waiting"),
        Series("waiting", "vllm:num_requests_waiting_by_reason", "gauge", WAITING, ("reason", "capacity")),
        Series("", "vllm:num_requests_waiting_by_reason", "gauge", WAITING, ("reason", "deferred")),
        Series("one", "vllm:engine_sleep_state", "gauge", ASLEEP, ("sleep_state", "awake")),
        Series("", "vllm:engine_sleep_state", "gauge", ASLEEP, ("sleep_state", "weights_offloaded")),
        Series("", "vllm:engine_sleep_state", "gauge", ASLEEP, ("sleep_state", "discard_all")),
        Series("kv_usage", "vllm:kv_cache_usage_perc", "gauge", "KV cells in use / KV cells, 0 to 1"),
        Series("kv_usage", "vllm:gpu_cache_usage_perc", "gauge", "The same, by its name of before"),
        Series("prefix_queries", "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up for reuse"),
        Series("prefix_hits", "vllm:prefix_cache_hits_total", "counter", "Prompt tokens reused"),
        Series(
            "prefix_queries", "vllm:external_prefix_cache_queries_total", "counter", "Prompt tokens looked up there"
        ),
        Series("prefix_hits_disk", "vllm:external_prefix_cache_hits_total", "counter", "Prompt tokens from the disk"),
        Series("media_queries", "vllm:mm_cache_queries_total", "counter", "Media that were looked up"),
        Series("media_hits", "vllm:mm_cache_hits_total", "counter", "Media that were not encoded again"),
        Series("prefix_hits", "vllm:prompt_tokens_cached_total", "counter", "Prompt tokens reused"),
        Series("prompt_tokens", "vllm:prompt_tokens_by_source_total", "counter", SOURCE, ("source", "local_compute")),
        Series("hits_here", "vllm:prompt_tokens_by_source_total", "counter", SOURCE, ("source", "local_cache_hit")),
        Series(
            "prefix_hits_disk",
            "vllm:prompt_tokens_by_source_total",
            "counter",
            SOURCE,
            ("source", "external_kv_transfer"),
        ),
        Series("prompts_total", "vllm:prompt_tokens_total", "counter", "Prompt tokens, cached ones too"),
        Series("generated_tokens", "vllm:generation_tokens_total", "counter", "Tokens generated"),
        Series("preempted", "vllm:num_preemptions_total", "counter", "Preemptions"),
        Series("finished_stop", "vllm:request_success_total", "counter", FINISHED, ("finished_reason", "stop")),
        Series("finished_length", "vllm:request_success_total", "counter", FINISHED, ("finished_reason", "length")),
        Series("cancelled", "vllm:request_success_total", "counter", FINISHED, ("finished_reason", "abort")),
        Series("failed", "vllm:request_success_total", "counter", FINISHED, ("finished_reason", "error")),
        Series("queue_seconds", "vllm:request_queue_time_seconds", "histogram", "Time in the queue"),
        Series("first_token_seconds", "vllm:time_to_first_token_seconds", "histogram", "Time to first token"),
        Series("inter_token_seconds", "vllm:inter_token_latency_seconds", "histogram", "From each token to the next"),
        Series("inter_token_seconds", "vllm:time_per_output_token_seconds", "histogram", "The same, as it was called"),
        Series("end_to_end_seconds", "vllm:e2e_request_latency_seconds", "histogram", "From submitted to the end"),
        Series(
            "prefill_seconds",
            "vllm:request_prefill_time_seconds",
            "histogram",
            "From the first work to the first token",
        ),
        Series("generation_seconds", "vllm:request_decode_time_seconds", "histogram", "From first token to the end"),
        Series(
            "inference_seconds",
            "vllm:request_inference_time_seconds",
            "histogram",
            "From the first work to the end",
        ),
        Series("step_rows", "vllm:iteration_tokens_total", "histogram", "Rows of a step"),
        Series("request_prompt_tokens", "vllm:request_prompt_tokens", "histogram", "Prompt tokens"),
        Series("request_generated_tokens", "vllm:request_generation_tokens", "histogram", "Tokens generated"),
        Series(
            "request_generated_tokens",
            "vllm:request_max_num_generation_tokens",
            "histogram",
            "Most tokens of a request's choices, each of which counts as one here",
        ),
        Series("request_max_tokens", "vllm:request_params_max_tokens", "histogram", "Tokens that might be generated"),
        Series(
            "request_token_seconds",
            "vllm:request_time_per_output_token_seconds",
            "histogram",
            "A request's mean time per token",
        ),
        Series(
            "request_computed_tokens",
            "vllm:request_prefill_kv_computed_tokens",
            "histogram",
            "Prompt tokens of a request that were not cached",
        ),
        Series("request_choices", "vllm:request_params_n", "histogram", "Choices asked for with a prompt"),
        Series("draft_batches_verified", "vllm:spec_decode_num_drafts_total", "counter", "Drafts decoded"),
        Series("draft_tokens_verified", "vllm:spec_decode_num_draft_tokens_total", "counter", "Rows of them"),
        Series("draft_tokens_accepted", "vllm:spec_decode_num_accepted_tokens_total", "counter", "Those that came"),
    )
}
