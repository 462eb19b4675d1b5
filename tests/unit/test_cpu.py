"""Threads from the quota and the affinity, over made-up cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cpu import CpuBudget, cpu_budget


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def quota(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    tree(tmp_path / "cgroup", files)
    tree(tmp_path, {"membership": membership})
    return cpu_budget(cgroup_root=tmp_path / "cgroup", membership=tmp_path / "membership").quota_cores


def test_version_2(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/\n", {"cpu.max": "250000 100000\n"}) == 2.5


def test_version_2_without_a_quota(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"}) is None


def test_version_2_takes_the_tightest_of_all_ancestors(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000",
        "pods/cpu.max": "300000 100000",
        "pods/one/cpu.max": "800000 100000",
        "other/cpu.max": "50000 100000",
    }
    assert quota(tmp_path, "0::/pods/one\n", files) == 3.0


def test_a_path_of_the_host_falls_back_to_the_mounted_root(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/kubepods/pod7/abc\n", {"cpu.max": "150000 100000"}) == 1.5


def test_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": "400000\n",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        "memory/box/cpu.cfs_quota_us": "1000\n",
        "memory/box/cpu.cfs_period_us": "100000\n",
    }
    assert quota(tmp_path, "5:memory:/box\n4:cpu,cpuacct:/box\n", files) == 4.0


def test_version_1_without_a_quota(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert quota(tmp_path, "4:cpu:/\n", files) is None


@pytest.mark.parametrize("text", ["", "garbage", "0 0", "100000 0", "-5 100000", "1e5 100000"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, text: str) -> None:
    assert quota(tmp_path, "0::/\n", {"cpu.max": text}) is None


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    budget = cpu_budget(cgroup_root=tmp_path / "none", membership=tmp_path / "none")
    assert budget.quota_cores is None
    assert budget.num_threads == budget.affinity_cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("affinity", "cores", "threads"), [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 4.0, 2)]
)
def test_threads_fit_into_both(affinity: int, cores: float | None, threads: int) -> None:
    assert CpuBudget(affinity_cores=affinity, quota_cores=cores).num_threads == threads
