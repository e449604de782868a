"""From a ModelConfig and a GGUF to a Model and a Context."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamafast._core.context import Context
from llamafast._core.llama_log import set_echo
from llamafast._core.model import Model
from llamafast._core.simd import instruction_set
from llamafast._core.vocab import Vocab
from llamafast.config import Config, LoraConfig, ModelConfig
from llamafast.engine.adapter_files import AdapterFiles, in_config, load_adapters
from llamafast.engine.disk_folder import DiskFolder, check_folder
from llamafast.engine.drafting import MTP, create_drafter, draft_params
from llamafast.engine.engine import Engine
from llamafast.engine.fingerprint import fingerprint, shards
from llamafast.engine.media import MediaEncoder
from llamafast.engine.memory import available_bytes, return_large_blocks
from llamafast.engine.pace import pace_of
from llamafast.engine.placement import computes_bare, placement_of
from llamafast.engine.pooling import create_embedder, embedding_params, embeds, made_to_embed
from llamafast.engine.recommended import recommended_sampling
from llamafast.engine.types import FimTokens, ModelInfo
from llamafast.errors import ConfigError, ModelLoadError

__all__ = ["load_engine", "resolved_settings", "set_echo"]

logger = logging.getLogger(__name__)

# The part of the memory that is available once the model is loaded which finished prompts may take.
CACHE_SHARE = 4

# enum llama_load_mode of llama.h
LOAD_MODE_NONE, LOAD_MODE_MMAP, LOAD_MODE_MLOCK, LOAD_MODE_MMAP_MLOCK = range(4)

# what llama.cpp says of memory that it does not get
_REFUSED_BYTES = re.compile(r"failed to allocate .*?\bsize (?P<bytes>\d+)")

# Sequence ids by kind of memory, where the config leaves it open. Ids of a unified cache cost nothing; a recurrent
# state is allocated for each id; a partitioned context is divided among them.
N_SEQ_MAX_UNIFIED, N_SEQ_MAX_RECURRENT, N_SEQ_MAX_PARTITIONED = 64, 8, 1


def load_model(config: ModelConfig, path: Path, on_progress: Callable[[float], None] | None = None) -> Model:
    """Load the weights. Raises ModelLoadError or ConfigError."""
    placement = placement_of(config)
    try:
        return Model(
            str(path),
            split_mode=placement.split_mode,
            main_gpu=placement.main_gpu,
            load_mode=_load_mode(config),
            with_heads=MTP in (config.drafts or ()),
            on_progress=on_progress,
            **config.llama_model_params,
        )
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model: {error}") from error


def create_context(model: Model, params: dict[str, Any]) -> Context:
    """Allocate memory for the sequences. Raises ModelLoadError, with numbers where there is too little, or
    ConfigError."""
    try:
        return Context(model, bare=computes_bare(model), **params)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model: {error}") from error
    except ModelLoadError as error:
        if (refused := _REFUSED_BYTES.search(str(error))) is None:
            raise
        raise ModelLoadError(
            f"a context of {params['n_ctx']} tokens does not fit into memory: a block of "
            f"{int(refused['bytes']) / 1e9:.2f} GB was refused, {available_bytes() / 1e9:.2f} GB are available. "
            f"Lower model.n_ctx, or model.n_batch ({params['n_batch']}) and model.n_seq_max ({params['n_seq_max']}); "
            f"model.type_k and model.type_v 8 (q8_0) halve the KV cache.\n{error}"
        ) from error


def create_contexts(config: ModelConfig, model: Model, widest_span: int = 0) -> tuple[Context, Context | None]:
    """The context that generates and the one that embeds, if it does; they are one for a model that only embeds. A
    step has room for ``widest_span`` rows of media at one go.

    Raises ModelLoadError, also for a model that could only embed and must not, or ConfigError.
    """
    params = with_room_for(widest_span, context_params(config, model))
    wanted = embeds(config, model)
    if not model.has_encoder and not (wanted and made_to_embed(config, model)):
        context = create_context(model, params | draft_params(config, model))
        if context.has_memory:
            beside = embedding_params(config, model, params, beside=True)
            return context, create_context(model, beside) if wanted else None
    if config.embedding is False:
        raise ModelLoadError("this model can only embed, and the config says `embedding: false`")
    context = create_context(model, embedding_params(config, model, params, beside=False))
    return context, context


def context_params(config: ModelConfig, model: Model) -> dict[str, Any]:
    """The llama_context_params this config means for this model; None leaves llama.h's default."""
    n_ctx = config.n_ctx or model.n_ctx_train
    n_batch = min(n_ctx, config.n_batch or 2048)
    placement = placement_of(config)
    return {
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": min(n_batch, config.n_ubatch or 512),
        "n_seq_max": config.n_seq_max or min(n_batch, _n_seq_max(config, model)),
        "n_threads": placement.threads,
        "n_threads_batch": placement.threads_batch,
        "choose_threads": placement.choose_threads,
        "flash_attn_type": None if config.flash_attn is None else int(config.flash_attn),
        **config.llama_context_params,
    }


def with_room_for(widest_span: int, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` of a context that computes so many rows at one go: llama.cpp would abort for less. Raises
    ConfigError."""
    if widest_span > params["n_ctx"]:
        raise ConfigError(
            f"model.n_ctx: a picture may have {widest_span} rows, more than the context's {params['n_ctx']}"
        )
    return params | {name: max(params[name], widest_span) for name in ("n_batch", "n_ubatch")}


def load_engine(
    config: Config,
    path: Path,
    on_progress: Callable[[float], None] | None = None,
    encoder: MediaEncoder | None = None,
    loras: Sequence[Path] = (),
    head: Path | None = None,
) -> Engine:
    """Everything between a GGUF and an Engine that can be started; with an ``encoder`` it takes media. ``loras`` are
    files of the config's adapters, ``head`` that of one that drafts (None: the model's own). Raises ModelLoadError or
    ConfigError."""
    if config.disk_cache is not None:
        check_folder(Path(config.disk_cache.path))
    model = load_model(config.model, path, on_progress)
    context, embedding_context = create_contexts(config.model, model, 0 if encoder is None else encoder.widest_span)
    adapter_files, adapters = None, []
    if loras or config.server.lora_dir is not None:
        adapter_files = AdapterFiles(model, shards(path))
        adapters = load_adapters(config.model.loras, loras, model, adapter_files)
    pace = pace_of(config.scheduler)
    embedder, embedding = None, None
    if embedding_context is not None:
        embedder, embedding = create_embedder(config.model, path, embedding_context, pace)
    generates = context is not embedding_context
    vocab = Vocab(model)
    info = ModelInfo(
        id=config.model.alias or path.name,
        created=int(time.time()),
        n_vocab=vocab.n_tokens,
        n_ctx_train=model.n_ctx_train,
        max_seq_len=max_seq_len(config.model, context) if generates or not embedding else embedding.max_tokens,
        max_output_tokens=config.model.max_output_tokens,
        chat_template=model.chat_template(),
        tool_use_template=model.chat_template("tool_use"),
        control_tokens=tuple(vocab.text(token) for token in range(vocab.n_tokens) if vocab.is_control(token)),
        longest_piece=vocab.longest_piece,
        bos_text=vocab.text(vocab.bos),
        eos_text=vocab.text(vocab.eos),
        description=model.description,
        sampling=recommended_sampling(model),
        fim=FimTokens(*vocab.fim_tokens()),
        generates=generates,
        embedding=embedding,
        cuts_anywhere=context.n_cuttable >= context.n_ctx_seq,
        modalities=() if encoder is None else encoder.modalities,
        aliases=config.model.aliases,
    )
    if any(one.name == info.id for one in adapters):
        raise ConfigError(f"model.loras: {info.id} is the model's own name")
    logger.info("model    %s: %s, %.2f GB", info.id, info.description, model.size / 1e9)
    logger.info("kernels  %s", "llama.cpp's own" if computes_bare(model) else instruction_set())
    logger.info(
        "context  %d cells, %d sequences of up to %d tokens, steps of up to %d rows",
        context.n_ctx,
        context.n_seq_max,
        info.max_seq_len,
        context.n_batch,
    )
    if embedding is not None:
        logger.info(
            "vectors  of %d numbers, pooling %s, inputs of up to %d tokens",
            embedding.width,
            embedding.pooling,
            embedding.max_tokens,
        )
    logger.info(
        "threads  %s%d to decode, %d to prefill",
        "up to " if placement_of(config.model).choose_threads else "",
        context.n_threads,
        context.n_threads_batch,
    )
    cache_bytes = config.cache.ram_bytes if generates else 0
    if cache_bytes is None:
        cache_bytes = available_bytes() // CACHE_SHARE
    drafter = None
    if generates:
        # Behind the measure of what is available: what this gives back the context will take again.
        warm_up(context, vocab)
        separate = None if head is None else load_model(config.model, head)
        drafter = create_drafter(config.model, context, vocab, separate)
        return_large_blocks()
        logger.info("cache    up to %.2f GB of host memory for finished prompts", cache_bytes / 1e9)
    disk = open_disk(config, path, model, context) if generates else None
    return Engine(
        context,
        vocab,
        info,
        config,
        pace=pace,
        cache_bytes=cache_bytes,
        embedder=embedder,
        encoder=encoder,
        disk=disk,
        adapters=adapters,
        adapter_files=adapter_files,
        drafter=drafter,
    )


def open_disk(config: Config, path: Path, model: Model, context: Context) -> DiskFolder | None:
    """The folder for prefixes of this model, computed as they are here. Raises ConfigError."""
    if config.disk_cache is None:
        return None
    try:
        folder = DiskFolder(Path(config.disk_cache.path), fingerprint(config.model, path, model, context))
    except (OSError, ValueError) as error:
        raise ConfigError(f"disk_cache: the model's file cannot be read again: {error}") from error
    what = f"up to {config.disk_cache.max_bytes / 1e9:.2f} GB" if folder.locked else "prefixes of another process's"
    logger.info("disk     %s in %s", what, folder.namespace)
    return folder


def warm_up(context: Context, vocab: Vocab) -> None:
    """Raises ModelLoadError where not even one token can be computed."""
    began = time.monotonic()
    try:
        n_bytes = context.warm_up(max(vocab.bos, 0))
    except RuntimeError as error:
        raise ModelLoadError(f"the model does not compute: {error}") from error
    seconds = time.monotonic() - began
    logger.info("warm-up  %.2f s, %.2f GB of the context's memory given back until needed", seconds, n_bytes / 1e9)


def resolved_settings(config: ModelConfig, path: Path) -> dict[str, Any]:
    """What this config means for the GGUF at ``path``, found without loading its weights. Raises ModelLoadError."""
    model = Model(str(path), vocab_only=True, kv_overrides=config.kv_overrides)
    params = context_params(config, model)
    if embeds(config, model):
        params = embedding_params(config, model, params, beside=not made_to_embed(config, model))
    return {"path": str(path), **params}


def check_adapters(configs: Sequence[LoraConfig], paths: Sequence[Path | None], model: Path) -> list[dict[str, Any]]:
    """What the files of adapters are, of those that are here. Raises ConfigError, ModelLoadError."""
    files = AdapterFiles(Model(str(model), vocab_only=True), shards(model))
    found = []
    for id, (config, path) in enumerate(zip(configs, paths, strict=True)):
        if path is not None:
            with in_config(id):
                alpha = files.check(path).alpha
            found.append({"id": id, "path": str(path), "name": config.name, "scale": config.scale, "alpha": alpha})
    return found


def max_seq_len(config: ModelConfig, context: Context) -> int:
    """The longest prompt and output of one sequence, in tokens. Raises ConfigError where the config asks for more."""
    limit = min(context.n_ctx_seq, context.model.n_ctx_train)
    if config.max_seq_len is None:
        return limit
    if config.max_seq_len > limit:
        raise ConfigError(f"model.max_seq_len: {config.max_seq_len} is more than this context's {limit}")
    return config.max_seq_len


def _n_seq_max(config: ModelConfig, model: Model) -> int:
    if model.is_recurrent or model.is_hybrid:
        return N_SEQ_MAX_RECURRENT
    return N_SEQ_MAX_UNIFIED if config.kv_unified else N_SEQ_MAX_PARTITIONED


def _load_mode(config: ModelConfig) -> int | None:
    """What llama-cpp-python's example server makes of use_mlock and use_mmap."""
    if config.use_mlock:
        return LOAD_MODE_MLOCK if config.use_mmap is False else LOAD_MODE_MMAP_MLOCK
    if config.use_mmap is None:
        return None
    return LOAD_MODE_MMAP if config.use_mmap else LOAD_MODE_NONE
