"""What this process may use of the machine: limits of control groups, of both versions, wherever they are set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ndani.runtime.hardware import _groups, detect

MB = 1 << 20
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(64):
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").write_text(f"{number}\n")
    return tmp_path


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def put(root: Path, own: str, mounts: str, files: dict[str, str]) -> None:
    """A /proc and a /sys: `files` by their paths below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


SERVICE = "0::/system.slice/ndani.service\n"
OLD = "4:memory:/system.slice/n.service\n3:cpu,cpuacct:/system.slice/n.service\n0::/system.slice/n.service\n"


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("own", "mounts", "files", "cores", "total"),
    [
        (SERVICE, V2, {}, 8, None),
        (SERVICE, V2, {"system.slice/ndani.service/memory.max": str(600 * MB)}, 8, 600 * MB),
        (SERVICE, V2, {"system.slice/memory.high": str(500 * MB), "memory.max": str(700 * MB)}, 8, 500 * MB),
        (SERVICE, V2, {"system.slice/ndani.service/memory.max": "max"}, 8, None),
        (SERVICE, V2, {"system.slice/ndani.service/cpu.max": "150000 100000"}, 1, None),
        (SERVICE, V2, {"system.slice/ndani.service/cpu.max": "399999 100000"}, 3, None),
        (SERVICE, V2, {"system.slice/ndani.service/cpu.max": "10000 100000"}, 1, None),
        (SERVICE, V2, {"system.slice/cpu.max": "200000 100000",
                       "system.slice/ndani.service/cpu.max": "max 100000"}, 2, None),
        ("0::/\n", V2, {"memory.max": str(100 * MB), "cpu.max": "250000 100000"}, 2, 100 * MB),
        # A container without a namespace of its own: it sees its group as the top of the mount.
        ("0::/docker/abc\n", V2.replace(" / /sys", " /docker/abc /sys"), {"memory.max": str(90 * MB)}, 8, 90 * MB),
        ("0::/docker/abc/inner\n", V2.replace(" / /sys", " /docker/abc /sys"), {"inner/memory.max": str(80 * MB)}, 8, 80 * MB),
        ("0::/../elsewhere\n", V2, {"memory.max": str(70 * MB)}, 8, 70 * MB),
        (OLD, V1, {"memory/system.slice/n.service/memory.limit_in_bytes": str(300 * MB)}, 8, 300 * MB),
        (OLD, V1, {"memory/system.slice/memory.limit_in_bytes": str(200 * MB),
                   "memory/memory.limit_in_bytes": "9223372036854771712"}, 8, 200 * MB),
        (OLD, V1, {"cpu,cpuacct/system.slice/n.service/cpu.cfs_quota_us": "150000",
                   "cpu,cpuacct/system.slice/n.service/cpu.cfs_period_us": "100000"}, 1, None),
        (OLD, V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8, None),
        ("0::/a b\n", V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/x\040y"), {"x y/a b/memory.max": str(60 * MB)}, 8, 60 * MB),
        ("", "", {}, 8, None),
    ],
)  # fmt: skip
def test_limits_count_wherever_they_are_set(
    root: Path, own: str, mounts: str, files: dict[str, str], cores: int, total: int | None
) -> None:
    put(root, own, mounts, files)
    found = detect(root)
    assert (found.cores, found.total) == (cores, total or psutil.virtual_memory().total)
    assert found.available <= found.total


def test_what_is_cached_counts_as_available(root: Path) -> None:
    stat = f"anon 5\nactive_file {10 * MB}\ninactive_file {20 * MB}"
    put(root, "0::/\n", V2, {"memory.max": str(100 * MB), "memory.current": str(60 * MB), "memory.stat": stat})
    assert detect(root).available == 70 * MB
    below = f"active_file 1\ninactive_file 1\ntotal_active_file {10 * MB}\ntotal_inactive_file {20 * MB}"
    old = {"memory/memory.limit_in_bytes": str(100 * MB), "memory/memory.usage_in_bytes": str(60 * MB)}
    put(root, "4:memory:/\n", V1, {**old, "memory/memory.stat": below})
    assert detect(root).available == 70 * MB


def test_two_threads_of_a_core_are_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 5})
    put(root, "", "", {})
    for number in range(6):
        (root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").write_text(
            f"{number // 2 * 2}-{number // 2 * 2 + 1}\n"
        )
    assert detect(root).cores == 3


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[list[Path]]:
    """Real groups below this process's own, one for memory and one for processors."""
    found = _groups(Path("/"))
    made = [folders[0] / f"ndani-test-{os.getpid()}" for name in ("memory", "cpu") if (folders := found.get(name))]
    try:
        for folder in dict.fromkeys(made):
            folder.mkdir()
        yield made
    except OSError:
        pytest.skip("no group can be made here")
    finally:
        for folder in dict.fromkeys(made):
            if folder.exists():
                folder.rmdir()


@pytest.mark.slow
def test_a_real_group(group: list[Path]) -> None:
    said = {"memory.max": str(600 * MB), "memory.limit_in_bytes": str(600 * MB), "cpu.max": "150000 100000", "cpu.cfs_quota_us": "150000"}
    for folder in group:
        for name, text in said.items():
            if (folder / name).exists():
                (folder / name).write_text(text)
    if not any((folder / name).exists() for folder in group for name in said):
        pytest.skip("groups here have no limits")
    script = "import json; from ndani.runtime.hardware import detect; f = detect(); print(json.dumps([f.cores, f.total, f.available]))"
    enter = "; ".join(f"echo $$ > '{folder}/cgroup.procs'" for folder in dict.fromkeys(group))
    done = subprocess.run(["sh", "-c", f"{enter}; exec '{sys.executable}' -c '{script}'"], capture_output=True, text=True, check=True)
    cores, total, available = json.loads(done.stdout)
    if any((folder / name).exists() for folder in group for name in ("memory.max", "memory.limit_in_bytes")):
        assert total == 600 * MB
        assert available <= total
    if any((folder / name).exists() for folder in group for name in ("cpu.max", "cpu.cfs_quota_us")):
        assert cores == 1
