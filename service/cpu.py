"""How many threads this process may keep busy: the cgroup's quota and the affinity, not the host's core count.

A container with a quota of two cores on a host of 64 would otherwise start 64 threads, which the kernel then stops for
most of every period.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class CpuBudget:
    """What limits this process."""

    affinity_cores: int
    """Cores that the scheduler may put this process on."""
    quota_cores: float | None
    """Cores' worth of time that the cgroup grants; None: no quota."""

    @property
    def num_threads(self) -> int:
        """Threads that can all run at once. A fraction of a core is left over for the process's other threads: one
        more thread would be stopped in the middle of every step, and all others would wait for it."""
        if self.quota_cores is None:
            return self.affinity_cores
        return max(1, min(self.affinity_cores, int(self.quota_cores)))


def cpu_budget(*, cgroup_root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> CpuBudget:
    """Reads the affinity and the tightest quota of the cgroups this process is in (versions 1 and 2, all ancestors).

    What cannot be read limits nothing: outside Linux, or without cgroups, the affinity decides.
    """
    quotas = [quota for quota in _quotas(cgroup_root, membership) if quota is not None]
    return CpuBudget(affinity_cores=_affinity(), quota_cores=min(quotas, default=None))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path, membership: Path) -> list[float | None]:
    """Quotas of the process's groups and of all groups above them.

    Inside a container the mounted root is mostly the container's own group while the membership may name a path of the
    host, so each path's ancestors are tried up to the root itself, and those that do not exist are passed over.
    """
    found: list[float | None] = []
    for line in _read(membership).splitlines() or ["0::/"]:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_version_2 = hierarchy == "0" and not controllers
        if is_version_2:
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
        else:
            continue
        relative = Path(path.lstrip("/"))
        for mount in mounts:
            for group in (relative, *relative.parents):
                found.append(_quota_2(mount / group) if is_version_2 else _quota_1(mount / group))
    return found


def _quota_2(group: Path) -> float | None:
    """Cores by `cpu.max`, "QUOTA PERIOD" or "max PERIOD" in microseconds."""
    fields = _read(group / "cpu.max").split()
    return _cores(fields[0], fields[1]) if len(fields) == 2 else None


def _quota_1(group: Path) -> float | None:
    """Cores by `cpu.cfs_quota_us`, -1 for none, and `cpu.cfs_period_us`."""
    return _cores(_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())


def _cores(quota: str, period: str) -> float | None:
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
