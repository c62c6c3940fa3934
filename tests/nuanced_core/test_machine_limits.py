"""nuanced_core.machine_limits: on recorded files of machines and containers, and in a real cgroup."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nuanced_core.machine_limits import available_memory, limit_threads, memory_limit, usable_cpus
from tests.cgroups import cgroup

CORES = 64
GB = 10**9
MEMINFO = f"MemTotal: {128 * GB // 1024} kB\nMemFree: 1000 kB\nMemAvailable: {100 * GB // 1024} kB\n"
UNLIMITED = "9223372036854771712"

V2_MOUNT = "26 22 0:23 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "35 25 0:30 {top} /sys/fs/cgroup/memory rw,nosuid shared:15 - cgroup cgroup rw,memory"
V1_CPU = "36 25 0:31 {top} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct"


def v2(folder: str, **files: str) -> dict[str, str]:
    """The files of a v2 cgroup; ``cpu_max`` stands for ``cpu.max``."""
    return {f"sys/fs/cgroup{folder}/{name.replace('_', '.', 1)}": text for name, text in files.items()}


def memory_v1(folder: str, limit: str, used: str = "0", statistics: str = "") -> dict[str, str]:
    place = f"sys/fs/cgroup/memory{folder}/memory"
    return {f"{place}.limit_in_bytes": limit, f"{place}.usage_in_bytes": used, f"{place}.stat": statistics}


def cpu_v1(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    place = f"sys/fs/cgroup/cpu,cpuacct{folder}/cpu"
    return {f"{place}.cfs_quota_us": quota, f"{place}.cfs_period_us": period}


def proc(cgroups: str, *mounts: str) -> dict[str, str]:
    return {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroups, "proc/self/mountinfo": "\n".join(mounts)}


# Each layout with what is expected of it: CPU cores, limit and available memory in GB.
LAYOUTS: dict[str, tuple[dict[str, str], tuple[int, float, float]]] = {
    "no cgroups": (proc("", "22 1 8:1 / / rw - ext4 /dev/sda1 rw"), (CORES, 128, 100)),
    "v2 without limits": (
        {
            **proc("0::/user.slice", V2_MOUNT.format(top="/")),
            **v2("/user.slice", cpu_max="max 100000", memory_max="max"),
        },
        (CORES, 128, 100),
    ),
    # As in Docker and Kubernetes: the container's cgroup is the root of its namespace.
    "v2 in a namespace": (
        {
            **proc("0::/", V2_MOUNT.format(top="/")),
            **v2("", cpu_max="250000 100000", memory_max=str(8 * GB), memory_current=str(5 * GB)),
            **v2("", memory_stat=f"anon {2 * GB}\ninactive_file {2 * GB}\nactive_file {GB}\n"),
        },
        (2, 8, 6),
    ),
    # As in Slurm and systemd: limits on several cgroups of the way up; the tightest applies, for each resource.
    "v2, nested": (
        {
            **proc("0::/job/step/task", V2_MOUNT.format(top="/")),
            **v2("/job", cpu_max="300000 100000", memory_max=str(20 * GB), memory_current=str(15 * GB)),
            **v2("/job/step", cpu_max="max 100000", memory_max=str(10 * GB), memory_current=str(2 * GB)),
            **v2("/job/step/task", cpu_max="400000 100000", memory_max="max", memory_current=str(GB)),
        },
        (3, 10, 5),
    ),
    "v2, throttled above memory.high": (
        {**proc("0::/a", V2_MOUNT.format(top="/")), **v2("/a", memory_high=str(4 * GB), memory_max=str(8 * GB))},
        (CORES, 4, 4),
    ),
    # As with `docker run --cgroupns=host`: the mount shows the container's cgroup, whose name is the host's.
    "v2 with a host's name": (
        {**proc("0::/docker/abc", V2_MOUNT.format(top="/docker/abc")), **v2("", memory_max=str(3 * GB))},
        (CORES, 3, 3),
    ),
    "v2 above a namespace": (
        {**proc("0::/../other", V2_MOUNT.format(top="/../..")), **v2("", cpu_max="100000 100000")},
        (1, 128, 100),
    ),
    "v1 without limits": (
        {
            **proc("4:memory:/\n3:cpu,cpuacct:/", V1_MEMORY.format(top="/"), V1_CPU.format(top="/")),
            **memory_v1("", UNLIMITED, str(90 * GB)),
            **cpu_v1("", "-1"),
        },
        (CORES, 128, 100),
    ),
    "v1, nested": (
        {
            **proc(
                "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc", V1_MEMORY.format(top="/"), V1_CPU.format(top="/")
            ),
            **memory_v1("", UNLIMITED, str(90 * GB)),
            **memory_v1("/docker", str(30 * GB), str(20 * GB), f"total_inactive_file {GB}\ninactive_file 0"),
            **memory_v1("/docker/abc", str(16 * GB), "0", "hierarchical_memory_limit 16000000000"),
            **cpu_v1("/docker/abc", "50000"),
        },
        (1, 16, 11),
    ),
    "v1 in a container": (
        {
            **proc("4:memory:/pod/abc", V1_MEMORY.format(top="/pod/abc")),
            # The pod's limit is that of a cgroup which is not visible.
            **memory_v1("", UNLIMITED, str(GB), f"cache 5\nhierarchical_memory_limit {6 * GB}"),
        },
        (CORES, 6, 5),
    ),
    "v1 with a host's name": (
        {**proc("4:memory:/docker/abc", V1_MEMORY.format(top="/")), **memory_v1("", str(2 * GB), str(GB))},
        (CORES, 2, 1),
    ),
    "hybrid": (
        {
            **proc(
                "4:memory:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/a",
                V1_MEMORY.format(top="/"),
                V1_CPU.format(top="/"),
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            ),
            **memory_v1("/a", str(7 * GB), str(GB)),
            **cpu_v1("/a", "800000", "200000"),
            "sys/fs/cgroup/unified/a/cgroup.procs": "",
        },
        (4, 7, 6),
    ),
    "a mount with a space": (
        {
            **proc("0::/", r"26 22 0:23 / /sys/fs/c\040group rw - cgroup2 cgroup2 rw"),
            "sys/fs/c group/memory.max": str(GB),
        },
        (CORES, 1, 1),
    ),
    "odd files": (
        {
            **proc(
                "0::/\nnonsense\n\n4:memory", "nonsense", " - cgroup2", "a - cgroup cgroup", V2_MOUNT.format(top="/")
            ),
            **v2("", cpu_max="100000 0", memory_max="-5", memory_current="?", memory_stat="x\ninactive_file y"),
        },
        (CORES, 128, 100),
    ),
    "more used than allowed": (
        {**proc("0::/", V2_MOUNT.format(top="/")), **v2("", memory_max=str(GB), memory_current=str(2 * GB))},
        (CORES, 1, 0),
    ),
}


def write(files: Mapping[str, str], root: Path) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(CORES), raising=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tightest_limit_on_the_way_to_the_root_applies(layout: str, tmp_path: Path) -> None:
    files, (cpus, limit, available) = LAYOUTS[layout]
    root = write(files, tmp_path)
    assert usable_cpus(root) == cpus
    assert memory_limit(root) / GB == pytest.approx(limit, rel=1e-6)
    assert available_memory(root) / GB == pytest.approx(available, rel=1e-6)


def test_the_affinity_mask_limits_the_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(LAYOUTS["v2, nested"][0], tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 9})
    assert usable_cpus(root) == 2


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path) == os.cpu_count()
    assert (
        memory_limit(tmp_path) == available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )


@pytest.mark.parametrize(
    ("layout", "given", "expected"),
    [("v2, nested", None, "3"), ("v2, nested", "7", "7"), ("v2 without limits", None, None)],
)
def test_threads_are_limited_where_a_quota_makes_them_fewer(
    layout: str, given: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # its threads are those of all tests
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(write(LAYOUTS[layout][0], tmp_path))
    assert os.environ.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_has_said_otherwise(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    limit_threads(tmp_path)
    assert os.environ["OMP_WAIT_POLICY"] == expected


MEASURED = """
import json, mmap, os, sys, torch
from nuanced_core.machine_limits import *
before = available_memory()
limit_threads()
held = torch.ones(100_000_000)  # 0.4 GB
with open(sys.argv[1], "wb") as file:
    file.write(bytes(300_000_000))
open(sys.argv[1], "rb").read()
print(json.dumps([usable_cpus(), memory_limit(), before, available_memory(), torch.get_num_threads()]))
"""


@pytest.mark.slow
def test_a_process_in_a_real_cgroup_reads_its_limits(tmp_path: Path) -> None:
    limit = 1_500_000_256  # a multiple of the page size
    with cgroup(cpus=1, memory=limit) as inside:
        command = [*inside, sys.executable, "-c", MEASURED, str(tmp_path / "file")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    cpus, most, before, after, threads = json.loads(done.stdout)
    assert (cpus, threads) == (1, 1)
    assert most == pytest.approx(limit, abs=os.sysconf("SC_PAGE_SIZE"))
    assert limit - 0.6 * GB < before < limit
    # The tensor is used memory; the file, in the cache of the cgroup, is not.
    assert before - after == pytest.approx(0.4 * GB, abs=0.1 * GB)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_returned_to_the_system() -> None:
    """200 MB in small pieces, of which every tenth is kept, in a process whose heap nothing else has filled."""
    code = """
from pathlib import Path
from nuanced_core.machine_limits import release_memory

def megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

before = megabytes()
kept = [bytearray(b"x" * 50_000) for _ in range(4_000)]
kept = kept[::10]
freed = megabytes()
release_memory()
print(round(freed - before), round(megabytes() - before))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    full, released = map(int, found.stdout.split())
    assert full > 150
    assert released < full / 3
