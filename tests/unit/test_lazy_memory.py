"""Memory that is taken as it is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from service.lazy_memory import lazy_zeros


def resident_bytes() -> int:
    """Anonymous and shared memory of this process that is in use now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def test_it_is_an_array_of_zeros_to_write_to() -> None:
    made = lazy_zeros((3, 5))
    assert (made.shape, made.dtype) == ((3, 5), np.float32)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert not made.any()
    made[1] = 2.0
    assert made.sum() == 10.0
    assert lazy_zeros((0, 4)).shape == (0, 4)
    assert (lazy_zeros((3, 5), np.int8).nbytes, lazy_zeros((3, 5), np.int8).dtype) == (15, np.int8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_only_what_is_touched_is_resident() -> None:
    before = resident_bytes()
    made = lazy_zeros((256, 64 * 1024))  # 64 MiB, a row of 256 KiB
    made[:, :16] = 1.0  # the first page of every row
    taken = resident_bytes() - before
    assert 256 * 4096 <= taken < 16 * 2**20
