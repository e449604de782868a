"""The Hugging Face hub: which files a repository has, and those of them that are, or are brought, on this machine.

Sole user of huggingface-hub, which is imported only for a source that needs it. Its progress bars are its own.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from llamafast.config import FromPretrained
from llamafast.errors import ModelLoadError
from llamafast.file_names import choose, is_glob, listing, split_parts

logger = logging.getLogger(__name__)

# How long the hub may take to say which files there are.
_SECONDS = 10.0
# The type of weights that a repository's name alone means.
_PREFERRED = "Q4_K_M"


def fetch(source: FromPretrained) -> Path:
    """The first of the files that a source names, all of which are on this machine by then. Raises ModelLoadError or
    OSError."""
    patterns = _patterns(source)
    listed = _repository_files(source) if any(map(is_glob, patterns)) else []
    paths = [_download(source, name) for name in _wanted(source, patterns, listed)]
    return paths[0]


def find_fetched(source: FromPretrained) -> Path | None:
    """The same without a download, which None stands for."""
    patterns = _patterns(source)
    listed = _local_files(source) if any(map(is_glob, patterns)) else []
    if any(is_glob(p) and not any(fnmatchcase(name, p) for name in listed) for p in patterns):
        return None
    paths = [_local_copy(source, name) for name in _wanted(source, patterns, listed)]
    return None if None in paths else paths[0]


class InRepository(NamedTuple):
    """Names of files in a repository: of a model, and of the projector beside it."""

    model: str
    projector: str | None


def find_in_repository(repo_id: str, quant: str | None = None, *, ask: bool = True) -> InRepository:
    """The model that ``org/repo`` or ``org/repo:quant`` means. ``quant`` is in its file's name, or is that name; None:
    Q4_K_M, or else the first one by name. Without ``ask`` only this machine is looked at, and where that has none of
    them the name is a glob. Raises ModelLoadError."""
    source = FromPretrained(repo_id=repo_id, filename="*.gguf")
    _patterns(source)
    listed = _repository_files(source) if ask else _local_files(source)
    named = [name for name in listed if name.lower().endswith(".gguf")]
    projectors = [name for name in named if "mmproj" in name.rpartition("/")[2].lower()]
    models = sorted({split_parts(name)[0] for name in named if name not in projectors and "imatrix" not in name})
    chosen = _of_type(models, quant or _PREFERRED) or ([] if quant else models)
    if not chosen and not ask:
        exact = quant is not None and quant.lower().endswith(".gguf")
        return InRepository(str(quant) if exact else f"*{quant or _PREFERRED}*.gguf", None)
    if not chosen:
        what = f"no model of {quant}" if quant else "no GGUF"
        raise ModelLoadError(f"{repo_id}: has {what}; its files: {listing(models or listed)}")
    beside = sorted(projectors, key=lambda name: ("f16" not in name.lower().replace("bf16", ""), name))
    return InRepository(chosen[0], next(iter(beside), None))


def _of_type(models: list[str], quant: str) -> list[str]:
    """Those that are named so, the plainest name first."""
    if quant in models:
        return [quant]
    part = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?:[-._/]|$)", re.IGNORECASE)
    return sorted((name for name in models if part.search(name)), key=lambda name: (len(name), name))


def _patterns(source: FromPretrained) -> list[str]:
    """The names or globs that a source asks for, the model's first. Raises ModelLoadError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(source.repo_id)
    except HFValidationError as error:
        raise ModelLoadError(f"{source.repo_id}: not a repository name: {error}") from error
    patterns = [source.filename, *(source.additional_files or ())]
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise ModelLoadError(f"{source.repo_id}: {pattern} is not a name inside the repository")
    return patterns


def _wanted(source: FromPretrained, patterns: list[str], listed: list[str]) -> list[str]:
    """The files that ``patterns`` mean, each once; globs choose from ``listed``. Raises ModelLoadError."""
    names = [choose(p, listed, source.repo_id) if is_glob(p) else p for p in patterns]
    return list(dict.fromkeys(part for name in names for part in split_parts(name)))


def _repository_files(source: FromPretrained) -> list[str]:
    """Names in the repository; when it cannot be reached, those on this machine."""
    from huggingface_hub import HfApi

    _quiet()
    try:
        # a list of files would be asked for again and again for half a minute, and this is asked for once
        return [file.rfilename for file in HfApi().model_info(source.repo_id, timeout=_SECONDS).siblings or ()]
    except Exception as error:
        # The hub's errors share no base class and differ between its releases.
        names = _local_files(source)
        if not names:
            raise ModelLoadError(f"{source.repo_id}: cannot list the repository: {_reason(source, error)}") from error
        reason = _reason(source, error)
        logger.warning("%s: cannot list the repository, choosing from local files: %s", source.repo_id, reason)
        return names


def _local_files(source: FromPretrained) -> list[str]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    names = set()
    if source.local_dir is not None:
        folder = Path(source.local_dir)
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        names = {name for name in names if not name.startswith(".cache/")}  # the hub's notes on its downloads
    try:
        repositories = scan_cache_dir(source.cache_dir).repos
    except (CacheNotFound, ValueError):  # no such folder, not a folder
        repositories = frozenset()
    for repository in repositories:
        if (repository.repo_type, repository.repo_id) == ("model", source.repo_id):
            for revision in repository.revisions:
                if "main" in revision.refs:
                    names |= {f.file_path.relative_to(revision.snapshot_path).as_posix() for f in revision.files}
    return sorted(names)


def _download(source: FromPretrained, name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    _quiet()
    try:
        if _local_copy(source, name) is None:
            # once, as above
            size = get_hf_file_metadata(hf_hub_url(source.repo_id, name), timeout=_SECONDS).size
            logger.info("fetching %s of %s, %.2f GB", name, source.repo_id, (size or 0) / 1e9)
        return Path(hf_hub_download(source.repo_id, name, cache_dir=source.cache_dir, local_dir=source.local_dir))
    except Exception as error:
        # As above. A model that is on this machine must start without the hub, whatever is wrong with it today.
        path = _local_file(source, name)
        if path is None:
            reason = _reason(source, error)
            raise ModelLoadError(f"{source.repo_id}: cannot download {name}: {reason}") from error
        logger.warning(
            "%s: cannot ask the hub for %s, using the local copy: %s", source.repo_id, name, _reason(source, error)
        )
        return path


def _quiet() -> None:
    """The hub's lines are told once, by whoever tells ours, and its bars only to people."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    logging.getLogger("huggingface_hub").handlers.clear()
    for client in ("httpx", "httpx2"):  # by the hub's release; their lines have addresses that are signed for us
        logging.getLogger(client).setLevel(logging.WARNING)
    if not sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        disable_progress_bars()


def _reason(source: FromPretrained, error: Exception) -> str:
    """What is wrong, in a line, and what helps."""
    from huggingface_hub import constants, errors

    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    page = f"{constants.ENDPOINT}/{source.repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return f"it is given to those only who have agreed to its terms: do that at {page}, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {page}, or it is private: set HF_TOKEN"
    if isinstance(error, (errors.EntryNotFoundError, errors.HFValidationError)):
        return text
    folder = source.local_dir or source.cache_dir or constants.HF_HUB_CACHE
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and it is not in {folder}"
    return f"{constants.ENDPOINT}: {text} (what was fetched before is taken from {folder})"


def _local_copy(source: FromPretrained, name: str) -> Path | None:
    """A file in ``local_dir``, else in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    target = Path(source.local_dir, name) if source.local_dir is not None else None
    if target is not None and target.is_file():
        return target
    cached = try_to_load_from_cache(source.repo_id, name, cache_dir=source.cache_dir)
    return Path(cached) if isinstance(cached, str) else None


def _local_file(source: FromPretrained, name: str) -> Path | None:
    """The same, put into the ``local_dir`` if there is one: the parts of a split model must lie side by side."""
    found = _local_copy(source, name)
    if found is None or source.local_dir is None:
        return found
    target = Path(source.local_dir, name)
    if found == target:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(found, partial)
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
