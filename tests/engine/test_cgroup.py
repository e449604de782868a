"""Limits of control groups, as the kernel shows them in different settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafast.engine.cgroup import cpu_quota, memory_left
from llamafast.engine.memory import available_bytes

GIB = 1 << 30


def files(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


class System:
    """A /proc/self and what is mounted."""

    def __init__(self, path: Path) -> None:
        self.proc, self.mounts = path / "proc", path / "sys fs"
        self.proc.mkdir()
        self._mountinfo = ["22 1 0:21 / /proc rw shared:1 - proc proc rw"]

    def mount(self, name: str, *, kind: str = "cgroup2", root: str = "/", options: str = "rw") -> Path:
        folder = self.mounts / name
        folder.mkdir(parents=True)
        at = str(folder).replace(" ", "\\040")
        self._mountinfo.append(f"31 22 0:28 {root} {at} rw,nosuid shared:9 master:2 - {kind} cgroup {options}")
        (self.proc / "mountinfo").write_text("\n".join(self._mountinfo))
        return folder

    def member(self, *lines: str) -> None:
        (self.proc / "cgroup").write_text("\n".join(lines))


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_the_narrowest_of_all_groups_around_counts(system: System) -> None:
    """A service of systemd's on a host without a namespace: the root has no limit."""
    top = system.mount("cgroup")
    system.member("0::/system.slice/llamafast.service/inner")
    files(top / "system.slice", memory__max=8 * GIB, memory__current=7 * GIB, cpu__max="350000 100000")
    files(top / "system.slice/llamafast.service", memory__max=4 * GIB, memory__current=GIB, cpu__max="max 100000")
    files(
        top / "system.slice/llamafast.service/inner", memory__max="max", memory__current=GIB, cpu__max="800000 100000"
    )
    assert memory_left(system.proc) == GIB
    assert cpu_quota(system.proc) == 3.5
    files(top / "system.slice/llamafast.service", memory__max=GIB + 1000)
    assert memory_left(system.proc) == 1000
    files(top / "system.slice/llamafast.service", memory__max=1000)
    assert memory_left(system.proc) == 0


def test_a_container_with_a_namespace_sees_its_group_as_the_root(system: System) -> None:
    top = system.mount("cgroup")
    system.member("0::/")
    files(top, memory__max=2 * GIB, memory__current=GIB, cpu__max="150000 100000")
    assert (memory_left(system.proc), cpu_quota(system.proc)) == (GIB, 1.5)


@pytest.mark.parametrize("path", ["/docker/abc/inner", "/kubepods/other", "/../../elsewhere"])
def test_a_container_without_one_is_told_the_hosts_path(system: System, path: str) -> None:
    top = system.mount("cgroup", root="/docker/abc")
    system.member(f"0::{path}")
    files(top, memory__max=2 * GIB, memory__current=GIB)
    files(top / "inner", memory__max=4 * GIB, memory__current=GIB)
    assert memory_left(system.proc) == GIB


def test_version_1_has_a_tree_for_each_controller(system: System) -> None:
    memory = system.mount("memory", kind="cgroup", options="rw,memory")
    cpu = system.mount("cpu,cpuacct", kind="cgroup", options="rw,cpu,cpuacct")
    system.mount("unified")
    system.member("9:name=systemd:/", "4:memory:/a/b", "2:cpu,cpuacct:/a", "0::/")
    files(memory, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GIB)
    files(memory / "a", memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=GIB)
    files(memory / "a/b", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GIB)
    files(cpu / "a", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    files(cpu, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert (memory_left(system.proc), cpu_quota(system.proc)) == (2 * GIB, 2.0)


def test_without_limits_there_are_none(system: System) -> None:
    assert (memory_left(system.proc), cpu_quota(system.proc)) == (None, None)
    top = system.mount("cgroup")
    system.member("0::/user.slice")
    files(top / "user.slice", memory__max="max", memory__current=5, cpu__max="max 100000")
    assert (memory_left(system.proc), cpu_quota(system.proc)) == (None, None)


def test_names_of_other_mounts_may_be_any_bytes(system: System) -> None:
    top = system.mount("cgroup")
    system.member("0::/a")
    files(top / "a", memory__max=GIB, memory__current=0)
    told = (system.proc / "mountinfo").read_bytes()
    names = (b"/mnt/caf\xe9", b"/mnt/\xe2\x80\xa8x\x0by")
    odd = [b"40 22 0:30 / %b rw - ext4 /dev/sda rw\n" % name for name in names]
    (system.proc / "mountinfo").write_bytes(b"".join([*odd, b"nonsense\n", told]))
    assert memory_left(system.proc) == GIB


def test_memory_is_the_lesser_of_machine_and_groups(system: System, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert available_bytes(meminfo, system.proc) == 1_024_000
    top = system.mount("cgroup")
    system.member("0::/")
    files(top, memory__max=1_000_000, memory__current=600_000)
    assert available_bytes(meminfo, system.proc) == 400_000
    files(top, memory__max=2_000_000)
    assert available_bytes(meminfo, system.proc) == 1_024_000
    # another system than Linux
    assert available_bytes(tmp_path / "nothing", tmp_path / "nothing") > 1 << 26
