"""From a ModelConfig and a GGUF to a Model and a Context."""

from __future__ import annotations

import logging
import re
import time
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from llamafast._core.context import Context
from llamafast._core.llama_log import set_echo
from llamafast._core.model import Model
from llamafast._core.progress import last_progress
from llamafast._core.simd import instruction_set
from llamafast._core.vocab import Vocab
from llamafast.config import Config, LoraConfig, ModelConfig, cache_type_name
from llamafast.engine.adapter_files import AdapterFiles, in_config, load_adapters
from llamafast.engine.allocated import allocated, in_one_line
from llamafast.engine.disk_folder import DiskFolder, check_folder
from llamafast.engine.drafting import ONLY_EMBEDS, check_positions, create_drafter, draft_params
from llamafast.engine.engine import Engine
from llamafast.engine.fingerprint import fingerprint, shards
from llamafast.engine.fit import advice, cells_in_words, with_context
from llamafast.engine.info import model_info
from llamafast.engine.kv_log import KVLog
from llamafast.engine.media import MediaEncoder
from llamafast.engine.memory import available_bytes, return_large_blocks
from llamafast.engine.model_params import ModelParams, drafting_params, model_params
from llamafast.engine.need import cell_bytes
from llamafast.engine.numa import choose_numa
from llamafast.engine.pace import pace_of
from llamafast.engine.params import context_params, with_room_for
from llamafast.engine.placement import computes_bare, placement_of
from llamafast.engine.pooling import create_embedder, embedding_params, embeds, made_to_embed
from llamafast.engine.threads import too_many_threads
from llamafast.engine.types import ModelInfo
from llamafast.errors import ConfigError, ModelLoadError

__all__ = ["check_adapters", "last_progress", "load_engine", "set_echo"]

logger = logging.getLogger(__name__)

# The part of the memory that is available once the model is loaded which finished prompts may take.
CACHE_SHARE = 4

# enum llama_load_mode of llama.h
LOAD_MODE_NONE, LOAD_MODE_MMAP, LOAD_MODE_MLOCK, LOAD_MODE_MMAP_MLOCK = range(4)

# what llama.cpp says of memory that it does not get
_REFUSED_BYTES = re.compile(r"failed to allocate .*?\bsize (?P<bytes>\d+)")


def load_draft(config: ModelConfig, path: Path) -> Model:
    """As ``load_model``, for a file that drafts."""
    return load_model(config, path, drafting_params(config))


def load_model(
    config: ModelConfig, path: Path, params: dict[str, Any], on_progress: Callable[[float], None] | None = None
) -> Model:
    """Load the weights, with these llama_model_params. Raises ModelLoadError or ConfigError."""
    try:
        return Model(str(path), load_mode=_load_mode(config), on_progress=on_progress, **params)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"model: {error}") from error


def create_context(model: Model, params: dict[str, Any], lower: Callable[[], str] | None = None) -> Context:
    """Allocate memory for the sequences. Raises ModelLoadError, with numbers where there is too little and with what to
    ``lower``, or ConfigError."""
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
            f"{'' if lower is None else lower()}\n{error}"
        ) from error


def create_contexts(
    config: ModelConfig, model: Model, widest_span: int = 0, path: Path | None = None
) -> tuple[Context, Context | None]:
    """The context that generates and the one that embeds, if it does; they are one for a model that only embeds. A
    step has room for ``widest_span`` rows of media at one go. ``path`` is the model's, to find out what would fit.

    Raises ModelLoadError, also for a model that could only embed and must not, or ConfigError.
    """
    params = with_room_for(widest_span, context_params(config, model))
    lower = None if path is None else partial(advice, config, path)
    wanted = embeds(config, model)
    if not model.has_encoder and not (wanted and made_to_embed(config, model)):
        context = create_context(model, params | draft_params(config, model), lower)
        if context.has_memory:
            beside = embedding_params(config, model, params, beside=True)
            return context, create_context(model, beside, lower) if wanted else None
    if config.embedding is False:
        raise ModelLoadError("this model can only embed, and the config says `embedding: false`")
    context = create_context(model, embedding_params(config, model, params, beside=False), lower)
    return context, context


def load_engine(
    config: Config,
    path: Path,
    on_progress: Callable[[float], None] | None = None,
    encoder: MediaEncoder | None = None,
    loras: Sequence[Path] = (),
    draft: Path | None = None,
    kv_log: KVLog | None = None,
    projector: Path | None = None,
) -> Engine:
    """Everything between a GGUF and an Engine that can be started; with an ``encoder`` it takes media. ``loras`` are
    files of the config's adapters, ``draft`` that of a small model or a head that drafts (None: the model's own head),
    ``kv_log`` is for notes of who has which prefix, ``projector`` the encoder's file. Raises ModelLoadError or
    ConfigError."""
    if config.disk_cache is not None:
        check_folder(Path(config.disk_cache.path))
    choose_numa(config.model.numa)
    widest_span = 0 if encoder is None else encoder.widest_span
    drafts = {"draft model" if config.model.has_draft_model else "draft head": [draft] if draft else []}
    parts = {"adapters": loras, **drafts, "projector": [projector] if projector else []}
    beside = {name: sum(file.stat().st_size for file in files) for name, files in parts.items()}
    small = draft if config.model.has_draft_model else None
    asked = config.model.n_ctx
    config = replace(config, model=with_context(config.model, path, sum(beside.values()), widest_span, draft=small))
    params = model_params(config.model, path)
    model = load_model(config.model, path, params.params, on_progress)
    allocated()
    context, embedding_context = create_contexts(config.model, model, widest_span, path)
    contexts = allocated().contexts
    adapter_files, adapters = None, []
    if loras or config.server.lora_dir is not None:
        adapter_files = AdapterFiles(model, shards(path))
        adapters = load_adapters(config.model.loras, loras, model, adapter_files)
    pace = pace_of(config.scheduler)
    embedder, embedding = None, None
    if embedding_context is not None:
        embedder, embedding = create_embedder(config.model, path, embedding_context, pace)
    generates = context is not embedding_context
    if not generates and config.model.has_draft_model:
        raise ConfigError(ONLY_EMBEDS)
    vocab = Vocab(model)
    info = model_info(
        config.model,
        path,
        model,
        vocab,
        n_seq_max=context.n_seq_max,
        max_seq_len=max_seq_len(config.model, context) if generates or not embedding else embedding.max_tokens,
        generates=generates,
        embedding=embedding,
        cuts_anywhere=context.n_cuttable >= context.n_ctx_seq,
        modalities=() if encoder is None else encoder.modalities,
        cell_bytes=cell_bytes(config.model, path),
    )
    if any(one.name == info.id for one in adapters):
        raise ConfigError(f"model.loras: {info.id} is the model's own name")
    _tell(info, params, config.model, context, cells_in_words(context.n_ctx, model.n_ctx_train, asked))
    cache_bytes = config.cache.ram_bytes if generates else 0
    available = available_bytes()
    if cache_bytes is None:
        cache_bytes = available // CACHE_SHARE
    drafter = None
    if generates:
        # Behind the measure of what is available: what this gives back the context will take again.
        warm_up(context, vocab)
        separate = None if draft is None or not context.n_undo else load_draft(config.model, draft)
        if separate is not None and small is not None:
            check_positions(small, info.max_seq_len)
        drafter = create_drafter(config.model, context, vocab, separate)
        beside["context of who drafts"] = sum(one.total for one in allocated().contexts)
        return_large_blocks()
    logger.info("memory   %s", in_one_line(model.size, contexts, beside, cache_bytes, available))
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
        kv_log=kv_log,
    )


def _tell(info: ModelInfo, params: ModelParams, config: ModelConfig, context: Context, cells: str) -> None:
    """In the log, what was loaded and how it computes."""
    model = context.model
    logger.info("model    %s: %s, %.2f GB", info.id, info.description, model.size / 1e9)
    for told in params.told():
        logger.info("%s", told)
    logger.info("kernels  %s", "llama.cpp's own" if computes_bare(model) else instruction_set())
    logger.info(
        "context  %s, %d sequences of up to %d tokens, steps of up to %d rows",
        cells,
        context.n_seq_max,
        info.max_seq_len,
        context.n_batch,
    )
    if config.type_k is not None or config.type_v is not None:
        types = map(cache_type_name, (config.type_k, config.type_v))
        logger.info("cache    keys %s, values %s", *types)
    if (embedding := info.embedding) is not None:
        logger.info(
            "vectors  of %d numbers, pooling %s, inputs of up to %d tokens",
            embedding.width,
            embedding.pooling,
            embedding.max_tokens,
        )
    logger.info(
        "threads  %s%d to decode, %d to prefill",
        "up to " if placement_of(config).choose_threads else "",
        context.n_threads,
        context.n_threads_batch,
    )
    if (warning := too_many_threads(config)) is not None:
        logger.warning("threads  %s", warning)


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


def check_adapters(configs: Sequence[LoraConfig], paths: Sequence[Path | None], model: Path) -> list[dict[str, Any]]:
    """What the files of adapters are, of those that are here. Raises ConfigError, ModelLoadError."""
    loaded = Model(str(model), vocab_only=True)
    files = AdapterFiles(loaded, shards(model))
    found: list[dict[str, Any]] = []
    for id, (config, path) in enumerate(zip(configs, paths, strict=True)):
        if path is not None:
            with in_config(id):
                said = files.check(path)
            found.append({"id": id, "path": str(path), "name": config.name, "scale": config.scale, "alpha": said.alpha})
            if said.invocation:
                found[-1]["alora_invocation_tokens"] = said.invocation
                found[-1]["alora_invocation_string"] = Vocab(loaded).detokenize(array("i", said.invocation))
    return found


def max_seq_len(config: ModelConfig, context: Context) -> int:
    """The longest prompt and output of one sequence, in tokens. Raises ConfigError where the config asks for more."""
    limit = min(context.n_ctx_seq, context.model.n_ctx_train)
    if config.max_seq_len is None:
        return limit
    if config.max_seq_len > limit:
        whose = f"this context's {limit}"
        if limit < context.n_ctx_seq:
            whose = f"the {limit} that the model was trained for"
        raise ConfigError(f"model.max_seq_len: {config.max_seq_len} is more than {whose}")
    return config.max_seq_len


def _load_mode(config: ModelConfig) -> int | None:
    """What llama-cpp-python's example server makes of use_mlock and use_mmap."""
    if config.use_mlock:
        return LOAD_MODE_MLOCK if config.use_mmap is False else LOAD_MODE_MMAP_MLOCK
    if config.use_mmap is None:
        return None
    return LOAD_MODE_MMAP if config.use_mmap else LOAD_MODE_NONE
