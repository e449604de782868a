"""What is packed: the source distribution holds what git does, the wheel every module and data file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from llamafast._core import LLAMA_CPP_PYTHON

ROOT = Path(__file__).parent.parent
# what the core is compiled from; a wheel holds the result
SOURCES = {".pyx", ".pxd", ".c", ".cpp", ".h"}


def tracked() -> set[str]:
    """The files of this checkout, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return {name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the checkout in which things were built and run."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for litter in (
        "build/generated/llamafast/_core/blocks.c",
        "llamafast/_core/blocks.c",
        "llamafast/_core/blocks.cpython-311-x86_64-linux-gnu.so",
        "llamafast/__pycache__/config.cpython-311.pyc",
        "tests/core/__pycache__/conftest.cpython-311.pyc",
        "tests/core/inside.cpython-311-x86_64-linux-gnu.so",
        ".cache/models/tiny.gguf",
        "models/model.gguf",
    ):
        (tree / litter).parent.mkdir(parents=True, exist_ok=True)
        (tree / litter).write_bytes(b"generated")
    return tree


def setup(tree: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, "setup.py", "-q", *command], cwd=tree, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_source_distribution_holds_what_git_does_and_nothing_generated(tree, tmp_path):
    setup(tree, "sdist", "--dist-dir", str(tmp_path))
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames() if files.getmember(name).isfile()}
    own = {name for name in names if not name.startswith("llamafast.egg-info/")} - {"PKG-INFO", "setup.cfg"}
    assert {name for name in tracked() if name.startswith("llamafast/")} - own == set()
    assert own - tracked() == set()
    missing = {name for name in tracked() - own if not name.startswith(".")}
    assert missing == {"tests/test_distribution.py"}


def test_a_wheel_holds_every_module_and_data_file(tree, tmp_path):
    setup(tree, "build_py", "--build-lib", str(tmp_path))
    packed = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {name for name in tracked() if name.startswith("llamafast/") and Path(name).suffix not in SOURCES}
    assert packed == expected


COMPILED_BY = """
import sys
import setuptools
from distutils.core import run_setup

build = run_setup("setup.py", sys.argv[1:], stop_after="commandline").get_command_obj("build_ext")
build.ensure_finalized()
print(*(extension.name for extension in build.extensions))
"""


@pytest.mark.parametrize("command", ["build_ext", "bdist_wheel", "editable_wheel"])
def test_what_tests_look_inside_the_core_with_is_compiled_for_them_alone(command):
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_BY, command],
        cwd=ROOT, env=os.environ | {"LLAMAFAST_TESTS": "1"}, capture_output=True, check=True, text=True,
    )  # fmt: skip
    packages = {name.rpartition(".")[0] for name in done.stdout.split()}
    assert packages == {"tests.core" if command == "build_ext" else "llamafast._core"}


def test_one_version_of_llama_cpp_is_built_with_installed_and_demanded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pin = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
    assert pin in project["build-system"]["requires"]
    assert pin in project["project"]["dependencies"]


def test_the_license_and_the_supported_pythons_are_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    supported = SpecifierSet(project["requires-python"])
    told = {text for text in project["classifiers"] if text.startswith("Programming Language :: Python :: 3.")}
    assert told == {f"Programming Language :: Python :: 3.{n}" for n in range(30) if f"3.{n}" in supported}
