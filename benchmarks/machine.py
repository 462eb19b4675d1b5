"""The facts of a machine that figures are read with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "asimddp", "i8mm")
"""What the products of int8 and fp32 depend on."""


def machine_facts(root: Path) -> dict[str, Any]:
    """CPU, cores, memory, system, versions and date; `root` is the checkout."""
    cpuinfo = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(listed.group(1).split()) if listed else set()
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    return {
        "cpu": model.group(1) if model else platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores_of_machine": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(root),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def use_cores(count: int) -> None:
    """Keeps this process and those it starts on `count` cores.

    Raises:
        ValueError: when it may not use as many.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    if count > len(allowed):
        raise ValueError(f"There must be {count} cores for this process, but there are {len(allowed)}.")
    os.sched_setaffinity(0, allowed[:count])


def _commit(root: Path) -> str | None:
    """The checkout's commit, with a plus where files differ from it; None without Git."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
