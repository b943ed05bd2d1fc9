"""The devices of a GPU: open in the jail of a runner that uses one, and only those that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ndani.jail import landlock, linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail's Linux file")


def test_a_gpu_is_left_open_for_a_runner_that_uses_one_and_only_what_is_there(tmp_path: Path) -> None:
    assert linux.gpu_paths(tmp_path) == {}
    for name in ("dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-modeset", "dev/kfd", "dev/dri/renderD128", "dev/dri/card0",
                 "dev/sda", "proc/modules", "proc/driver/nvidia/version", "sys/devices/pci0000:00/x", "sys/devices/system/x"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(Path(path).relative_to(tmp_path)): rights for path, rights in linux.gpu_paths(tmp_path).items()}
    devices = {"dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm", "dev/kfd", "dev/dri/renderD128"}
    assert found["dev/dri"] == landlock.READ_DIR, "a list of displays, and none of them"
    assert set(found) == devices | {"dev/dri", "proc/modules", "proc/driver/nvidia", "sys/devices/pci0000:00"}
    writes = landlock.WRITE_FILE | landlock.COMMAND_DEVICE
    assert {path for path, rights in found.items() if rights & writes == writes} == devices
    assert all(not rights & writes for path, rights in found.items() if path not in devices)


GPU = """
import errno, json, os, sys
from pathlib import Path
from ndani import jail
from ndani.jail import linux
root = Path(sys.argv[1])
there = linux.gpu_paths
linux.gpu_paths = lambda: there(root)
jail.enter(jail.Policy("/nowhere", gpu=sys.argv[2] == "gpu"))
found = {}
for name in ("dev/nvidia0", "dev/dri/renderD128", "dev/sda"):
    try:
        os.close(os.open(root / name, os.O_RDWR))
        found[name] = "ok"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_devices_of_a_gpu_open_inside_the_jail_only_where_one_is_used(tmp_path: Path) -> None:
    for name in ("dev/nvidia0", "dev/dri/renderD128", "dev/sda"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for word, want, other in (("gpu", "ok", "EACCES"), ("none", "EPERM", "EPERM")):
        done = subprocess.run([sys.executable, "-c", GPU, str(tmp_path), word], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"dev/nvidia0": want, "dev/dri/renderD128": want, "dev/sda": other}
