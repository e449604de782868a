"""What is said to whoever writes a flag of llama-server, vLLM or Ollama that has no like here."""

from __future__ import annotations

import re

_SAMPLING = (
    "requests say how to sample, and the GGUF what is recommended (general.sampling.*, --set model.kv_overrides=...)"
)
_DRAFTS = (
    "drafts are --set model.draft_model=prompt-lookup-decoding, draft-mtp, or draft-simple with "
    "--set model.draft_model_path=FILE: docs/drafts.md"
)
_TYPES = "a GGUF has its types in it; another one is another file, org/repo:QUANT on the hub"
_GPUS = "llama.cpp divides a model among all GPUs by itself; -ts, -sm and -mg say otherwise"
_LOG = "the log goes to stderr; -v adds llama.cpp's own, --set server.log_format=json makes objects of its lines"
_DIALECT = "how a model writes calls and reasoning is known by its template; --set model.dialect=NAME says otherwise"
_BY_REQUEST = "requests say so: docs/tools.md"
_NOT_TAKEN = "a request with `cache_prompt` false takes nothing and leaves nothing"
_ADAPTERS = "--lora FILE or name=FILE is enough"
_LAID_OUT = "llama.cpp lays weights out by itself: leave it out"
_WORKERS = "a server for each, and a router in front: docs/deploy.md"
_ROOM = "--ctx says how large the cache is, --cache-ram how much is kept beside it"

ANSWERS: dict[str, str] = {
    # llama-server
    "-n": "requests say max_tokens; --set model.max_output_tokens=N is the most that any may have",
    "--predict": "requests say max_tokens; --set model.max_output_tokens=N is the most that any may have",
    "--n-predict": "requests say max_tokens; --set model.max_output_tokens=N is the most that any may have",
    **dict.fromkeys(("--temp", "--top-k", "--top-p", "--min-p", "-s", "--seed", "--samplers"), _SAMPLING),
    **dict.fromkeys(("--repeat-penalty", "--presence-penalty", "--frequency-penalty"), _SAMPLING),
    **dict.fromkeys(("-md", "--model-draft", "--draft", "--draft-max", "--spec-type", "--speculative-config"), _DRAFTS),
    **dict.fromkeys(("--log-file", "--log-disable", "--log-verbosity", "-lv", "--log-colors"), _LOG),
    "--version": "`llamafast --version` tells it",
    "--list-devices": "`llamafast check MODEL` tells which are used, and an error of --device which there are",
    **dict.fromkeys(("-ncffn", "--n-cpu-ffn"), "-ot 'blk.[0-9].ffn_(gate|up|down).weight=CPU' says so of ten layers"),
    **dict.fromkeys(("--reasoning-format", "--reasoning-budget", "--chat-template-kwargs"), _BY_REQUEST),
    "--override-kv": "--set model.kv_overrides='{\"KEY\": VALUE}'",
    "--rerank": "a ranking model is known by its GGUF; --pooling rank says so of another one",
    "--reranking": "a ranking model is known by its GGUF; --pooling rank says so of another one",
    "--path": "put a web server in front for files of your own",
    "--api-prefix": "put a proxy in front for a prefix",
    "--threads-http": "one event loop serves all connections",
    "--timeout": "--set server.request_seconds=N, queue_seconds and send_seconds are the limits: docs/config.md",
    "-to": "--set server.request_seconds=N, queue_seconds and send_seconds are the limits: docs/config.md",
    "--slot-save-path": "prefixes outlive the server with disk_cache: docs/config.md",
    "--cache-reuse": "prefixes of all requests are shared by themselves",
    "--context-shift": "a text that is as long as the context ends there, with finish_reason length",
    "--no-context-shift": "nothing else happens here: leave it out",
    "--no-cache-prompt": _NOT_TAKEN,
    **dict.fromkeys(("-nocb", "--no-cont-batching"), "batches are always continuous: leave it out"),
    **dict.fromkeys(("--perf", "--no-perf"), "a request with `timings_per_token` is told its times"),
    **dict.fromkeys(
        ("-nr", "--repack", "--no-repack", "--no-host", "-dio", "--direct-io", "--check-tensors"), _LAID_OUT
    ),
    **dict.fromkeys(("-dt", "--defrag-thold"), "memory is not moved: leave it out"),
    "--rope-scale": "--rope-freq-scale takes one divided by it",
    "--offline": "set HF_HUB_OFFLINE=1",
    "--mmproj-auto": "a hub name brings its projector along, unless --no-mmproj",
    "--image-min-tokens": "the least of a picture is its projector's; --image-max-tokens N is the most",
    "--tags": "--alias a,b gives a model further names",
    "--media-path": "--set model.mtmd.allowed_local_media_path=FOLDER: docs/media.md",
    "--lora-init-without-apply": "an adapter with a name is for requests that ask for it: --lora name=FILE",
    "--no-warmup": "one token is computed at start, so that a model which does not compute is not served",
    "--models-dir": "several models are the config's `models`: docs/models.md",
    "--models-max": "several models are the config's `models`, and pool.max_bytes: docs/models.md",
    "--mmproj-url": "--mmproj names a file; a hub name brings its projector along",
    "--model-url": "`llamafast serve org/repo[:quant]` fetches from the hub; another file is yours to fetch",
    "-mu": "`llamafast serve org/repo[:quant]` fetches from the hub; another file is yours to fetch",
    "--hf-token": "set HF_TOKEN, which the process list does not show",
    "-hft": "set HF_TOKEN, which the process list does not show",
    # vLLM
    **dict.fromkeys(("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"), _GPUS),
    "--data-parallel-size": _WORKERS,
    **dict.fromkeys(("--dtype", "--quantization", "-q", "--load-format"), _TYPES),
    **dict.fromkeys(("--tool-call-parser", "--reasoning-parser", "--tool-parser-plugin"), _DIALECT),
    "--gpu-memory-utilization": "--gpu-layers says how much of the model GPUs get, --ctx how large its cache is",
    "--cpu-offload-gb": "--gpu-layers N leaves the other layers to CPUs",
    "--swap-space": "prefixes are kept in host memory: --cache-ram MIB",
    "--download-dir": "set HF_HUB_CACHE, the hub's own cache folder",
    "--revision": "`model.from_pretrained` takes a repository's main branch",
    "--tokenizer": "a GGUF has its tokeniser in it",
    "--trust-remote-code": "a GGUF has no code in it: leave it out",
    "--enforce-eager": "there are no CUDA graphs to leave out",
    "--no-enable-prefix-caching": _NOT_TAKEN,
    "--block-size": "the cache has no blocks",
    "--enable-lora": _ADAPTERS,
    "--config": "-C FILE is a config file of ours, docs/config.md",
    "--api-server-count": "one event loop serves all connections",
    "-dp": _WORKERS,
    **dict.fromkeys(("--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--kv-offloading-size"), _ROOM),
    "--max-loras": "--set model.max_loras=N: sets of adapters that run at once",
    "--root-path": "put a proxy in front for a prefix",
    "--task": "a model's task is known by its GGUF; --embedding adds vectors to one that generates",
    "--runner": "a model's task is known by its GGUF; --embedding adds vectors to one that generates",
    "--guided-decoding-backend": "llguidance follows every grammar and schema, or refuses it",
    "--enable-log-outputs": "--set server.request_log.content=true: docs/metrics.md",
    "--max-log-len": "--set server.request_log.max_content_chars=N, beside server.request_log.content=true",
    "--limit-mm-per-prompt": "--set model.mtmd.max_media=N",
}

# Commands of Ollama, vLLM and llama.cpp.
COMMANDS: dict[str, str] = {
    "help": "`llamafast --help` tells the commands",
    "version": "`llamafast --version` tells it",
    **dict.fromkeys(("pull", "download"), "`llamafast serve org/repo[:quant]` fetches what is not here yet"),
    **dict.fromkeys(("list", "ls"), "`hf cache ls` lists what was fetched, GET /v1/models what a server has"),
    **dict.fromkeys(("ps", "status"), "GET /v1/models of a server tells its models, GET /health how it is"),
    **dict.fromkeys(("show", "inspect"), "`llamafast check MODEL` looks at one"),
    "stop": "Ctrl-C, or SIGTERM, ends a server once what runs is done",
    "rm": "`hf cache rm` deletes what was fetched",
    **dict.fromkeys(("create", "cp", "push"), "a model is a GGUF and a config file: docs/config.md"),
    "run-batch": "`llamafast batch MODEL IN OUT` answers the requests of a file",
    "complete": "`llamafast chat` talks in the terminal",
}

# The many of one purpose, by what their names have in common, dashes in front left out. The first that fits counts.
_FAMILIES = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"(spec|draft|lookup-cache)-.*|.*-draft(-.*)?|lc[sd]|otd|devd|n?cmoed|ct[kv]d|td|tbd|hf(r)?d", _DRAFTS),
        (r"(temperature|top|min|typical|xtc|dry|dynatemp|mirostat|adaptive|repeat|penalt|sampl).*", _SAMPLING),
        (r"(logit-bias|ignore-eos|backend-sampling|keep|reverse-prompt|special).*|r|sp", _SAMPLING),
        (r"grammar.*|json-schema.*|jf?|structured-outputs-.*", "requests say so: docs/structured-output.md"),
        (r"reasoning.*|rea|.*prefill-assistant|skip-chat-parsing|chat-template-.*", _BY_REQUEST),
        (r"(agent|tools|mcp|(web)?ui-mcp)(-.*)?", "clients run the tools that they offer: docs/tools.md"),
        (
            r"(prompt|file|binary-file|escape|system-prompt.*|e|p|f)",
            "requests say what is asked; `llamafast chat` asks",
        ),
        (
            r"(cpu|prio|poll|threads)-.*|prio|poll",
            "threads are placed by what is measured, on CPUs that taskset leaves",
        ),
        (r"(ctx|swa)-checkpoints|checkpoint-.*|cache-.*|slot-.*", "prefixes of all requests are shared by themselves"),
        (r"log-.*|verbos.*|uvicorn-log-level|disable-log-stats", _LOG),
        (r"fit.*", "a context without --ctx is as long as fits; `llamafast check MODEL` tells what that comes to"),
        (r"models-.*", "several models are the config's `models`: docs/models.md"),
        (r".*-(default|spec)", "`llamafast serve org/repo[:quant]` serves a model of the hub"),
        (r"(tensor|data|pipeline|expert)-parallel-.*|.*-parallel", _GPUS),
        (r"generation-config|override-generation-config", _SAMPLING),
        (r"tokenizer.*|skip-tokenizer-init|hf-overrides|config-format", "a GGUF has its tokeniser and its sizes in it"),
        (r"otlp-.*", "--set server.otlp_endpoint=http://127.0.0.1:4318: docs/traces.md"),
        (r"(no-)?mmproj-offload", "the projector is computed where model.devices says: docs/config.md"),
        (
            r"(disable-)?(chunked-)?(mm|media)-.*|disable-chunked-mm-.*",
            "limits of media are keys of model.mtmd: docs/media.md",
        ),
        (r"control-vector.*", "there are none here; --lora changes how a model writes"),
        (r".*loras?(-.*)?", _ADAPTERS),
        (r"(headless|distributed-.*|disable-frontend-.*)", _WORKERS),
        (
            r"max-(num|long)-partial-prefills|long-prefill-.*|async-scheduling|stream-interval",
            "how much of a step a prompt may take is measured: --set scheduler.target_itl_ms=N",
        ),
        (r"allow-credentials|allowed-(methods|headers)|middleware|disable-fastapi-.*", "put a proxy in front for that"),
        (
            r"max-logprobs|logprobs-mode|return-tokens-as-.*|enable-force-include-usage",
            "requests ask for it: docs/fields.md",
        ),
        (r"enable-(request-id-headers|server-load-tracking)|collect-.*", "it is always told: docs/metrics.md"),
        (r"(model-impl|compilation-config|disable-(sliding|cascade)-.*|O.*)", "llama.cpp computes a GGUF as it is"),
        (r"kv-(events|transfer)-config", "--set server.kv_events='{}' tells routers of prefixes: docs/deploy.md"),
        (r"scheduling-policy", "--set scheduler.priorities=true lets requests have a `priority`"),
    )
)


def family(flag: str) -> str | None:
    """What is said to a flag that is in no table here, but of a kind that is known; None: to nobody's."""
    name = flag.lstrip("-")
    return next((text for pattern, text in _FAMILIES if pattern.fullmatch(name)), None)
