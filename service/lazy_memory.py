"""Arrays whose memory is taken page by page as they are touched, also where the system would hand out huge pages.

A slab is sized for the longest sentences and is mostly touched at the beginning of each row's slot: with huge pages of
2 MiB nearly all of it would be resident after a few sentences (measured: 30 MB more, no difference in speed).
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def lazy_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """An array of `shape` and `dtype`, zero, in address space of its own."""
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size, 1) * np.dtype(dtype).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, size).reshape(shape)
