"""A config's ``model.mtmd``, opened: the process that encodes, and what the engine and the API know of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from llamafast.config import ModelConfig, MtmdConfig
from llamafast.errors import ConfigError
from llamafast.media.encoder import Encoder
from llamafast.media.loader import Loader
from llamafast.media.process import MediaProcess
from llamafast.media.row_files import RowFiles
from llamafast.media.wire import Begin

logger = logging.getLogger(__name__)

# Beside the threads that compute, and the event loop where it has to share CPUs with this: these go first.
NICENESS = 5


class OpenedMedia(NamedTuple):
    encoder: Encoder
    loader: Loader


def open_media(
    config: ModelConfig,
    mtmd: MtmdConfig,
    model: Path,
    projector: Path,
    *,
    n_threads: int,
    device: str | None,
    shares_cpus: bool,
) -> OpenedMedia:
    """Start the process, which runs on the CPUs of the caller's thread, those that compute where it ``shares_cpus``.

    Raises ModelLoadError or ConfigError.
    """
    files = None
    if (cache := mtmd.embedding_cache) is not None:
        try:
            files = RowFiles(Path(cache.path), cache.max_bytes)
        except OSError as error:
            raise ConfigError(f"model.mtmd.embedding_cache.path: {error}") from error
    process = MediaProcess(
        Begin(
            model=str(model),
            projector=str(projector),
            n_threads=n_threads,
            device=device,
            flash_attn=None if config.flash_attn is None else int(config.flash_attn),
            batch_max_tokens=mtmd.batch_max_tokens,
            image_max_tokens=mtmd.image_max_tokens,
            image_max_pixels=mtmd.image_max_pixels,
            audio_max_seconds=mtmd.audio_max_seconds,
            video_max_seconds=mtmd.video_max_seconds,
            video_max_frames=mtmd.video_max_frames,
            encode_max_seconds=mtmd.encode_max_seconds,
            n_nice=NICENESS,
        )
    )
    ready = process.start()
    logger.info("media    %s by %s, %d threads", " and ".join(ready.modalities) or "none", projector.name, n_threads)
    encoder = Encoder(
        process,
        ready.modalities,
        widest_span=ready.widest_span,
        width=ready.width,
        shares_cpus=shares_cpus,
        cache_bytes=mtmd.cache_ram_bytes,
        files=files,
    )
    return OpenedMedia(encoder, Loader(mtmd, process, ready.fingerprint, files, ready.projectors))
